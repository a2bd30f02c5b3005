"""Load one backbone; whatever can be wrong with it becomes one sentence."""

import pickle
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from fastdense.errors import UserError
from fastdense.modeling.layout import join
from fastdense.modeling.quiet import quiet_transformers
from fastdense.modeling.source import ModelSource

_LOADING_FAULTS = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError, pickle.UnpicklingError)


def load_backbone(
    source: ModelSource,
    folder: str = "",
    *,
    config_name: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load the ``AutoModel`` in ``source``/``folder`` in float32, whatever precision its file has.

    Raises:
        UserError: no text encoder or decoder, missing or damaged files, weights that are not all there.
    """
    config = _load_config(source, folder, config_name, trust_remote_code)
    _check_architecture(source, config)
    settings = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(
                source.name,
                subfolder=folder,
                config=config,
                # The library's default is the file's own precision: fp16 weights would silently train in fp16.
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **_hub(source),
                **settings,
            )
    except _LOADING_FAULTS as error:
        raise _explain(source, folder, error, attn_implementation) from error
    _check_weights(source, folder, model, report)
    return model.train()


def is_decoder(config: Any) -> bool:
    """Whether tokens see only what stands before them."""
    if getattr(config, "is_decoder", False):
        return True
    if getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", None):
        return False
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _load_config(source: ModelSource, folder: str, config_name: str | None, trust_remote_code: bool) -> Any:
    where = f"{source}/{folder}".rstrip("/") if config_name is None else f"--config_name {config_name}"
    if config_name is None:
        _check_config_file(source, folder, trust_remote_code)
    try:
        if config_name is not None:
            return AutoConfig.from_pretrained(
                config_name, trust_remote_code=trust_remote_code, cache_dir=source.cache_dir
            )
        return AutoConfig.from_pretrained(
            source.name, subfolder=folder, trust_remote_code=trust_remote_code, **_hub(source)
        )
    except _LOADING_FAULTS as error:
        raise UserError(f"cannot read the model configuration of {where}: {_first_line(error)}") from error


def _check_config_file(source: ModelSource, folder: str, trust_remote_code: bool) -> None:
    path = join(folder, "config.json")
    config = source.object(path)
    if config is None:
        raise UserError(f"{source} has no {path}: it is no model directory")
    needs_code = "AutoModel" in config.get("auto_map", {}) and config.get("model_type") not in CONFIG_MAPPING
    if needs_code and not trust_remote_code:
        raise UserError(
            f"{source} brings its own Python code: read it, and pass --trust_remote_code if you want to run it"
        )
    if "model_type" not in config and not needs_code:
        raise UserError(f"{source}/{path} has no model_type: it is no Hugging Face model, or the file is damaged")


def _check_architecture(source: ModelSource, config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{source} is an encoder-decoder model ({kind}): use an encoder or a decoder-only model")
    if any(hasattr(config, part) for part in ("vision_config", "audio_config", "image_size", "num_mel_bins")):
        raise UserError(f"{source} is not a text model ({kind}): use a text encoder or a decoder-only language model")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise UserError(f"{source} ({kind}) has no single hidden_size: use a text encoder")


def _check_weights(source: ModelSource, folder: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"{source}/{folder}".rstrip("/") + f" lacks {len(missing)} of the {len(model.state_dict())} weights of "
            f"its {type(model).__name__}, {missing[0]} first: they would start random; use a complete model"
        )


def _explain(source: ModelSource, folder: str, error: Exception, attn_implementation: str | None) -> UserError:
    where = f"{source}/{folder}".rstrip("/")
    reason = _first_line(error)
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError):
        return UserError(f"the weights of {where} are damaged or cut short ({reason}): copy or download them again")
    if attn_implementation is not None and ("attn" in reason or "attention" in reason.lower()):
        return UserError(f"--attn_implementation {attn_implementation} does not work for {where}: {reason}")
    return UserError(f"cannot load the model {where}: {reason}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _hub(source: ModelSource) -> dict[str, Any]:
    return {"cache_dir": source.cache_dir, "revision": source.revision or "main"}
