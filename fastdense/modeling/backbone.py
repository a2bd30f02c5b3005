"""Load one backbone; whatever can be wrong with it becomes one sentence."""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from fastdense.errors import UserError
from fastdense.files import check_readable
from fastdense.modeling.layout import join
from fastdense.modeling.quiet import quiet_transformers
from fastdense.modeling.reason import reason
from fastdense.modeling.source import ModelSource, open_source

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FOREIGN_WEIGHTS = ("flax_model.msgpack", "tf_model.h5", "model.onnx", "adapter_model.safetensors")


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
    if config_name is None:
        config = _load_config(source, folder, trust_remote_code)
    else:
        config = _load_config(open_source(config_name, source.cache_dir), "", trust_remote_code)
    where = join(source.name, folder)
    _check_architecture(where, config)
    _check_files(source, folder)
    settings = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        with quiet_transformers():
            model, report = AutoModel.from_pretrained(
                source.name,
                subfolder=folder,
                config=config,
                # The library's default is the file's own precision: fp16 weights would silently train in fp16.
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are in the report, by name
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **_hub(source),
                **settings,
            )
    except Exception as error:  # damaged files make the libraries raise nearly anything
        _check_readable(source, folder)  # of what may not be read, safetensors says that there is no such file
        raise _explain(where, error, attn_implementation) from error
    _check_weights(where, model, report)
    return model.train()


def is_decoder(config: Any) -> bool:
    """Whether tokens see only what stands before them."""
    if getattr(config, "is_decoder", False):
        return True
    if getattr(config, "is_causal", None) is False or getattr(config, "use_bidirectional_attention", None):
        return False
    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _load_config(source: ModelSource, folder: str, trust_remote_code: bool) -> Any:
    where = join(source.name, folder)
    content = source.object(join(folder, "config.json"))
    if content is None:
        raise UserError(f"{where} has no config.json: it is no model directory")
    kind = content.get("model_type")
    needs_code = "AutoModel" in content.get("auto_map", {}) and kind not in CONFIG_MAPPING
    if needs_code and not trust_remote_code:
        raise UserError(
            f"{where} brings its own Python code: read it, and pass --trust_remote_code if you want to run it"
        )
    if not isinstance(kind, str) and not needs_code:
        raise UserError(f"{where}/config.json has no model_type: it is no Hugging Face model, or it is damaged")
    try:
        return AutoConfig.from_pretrained(
            source.name, subfolder=folder, trust_remote_code=trust_remote_code, **_hub(source)
        )
    except Exception as error:  # its values are checked by many hands
        raise UserError(f"cannot use {where}/config.json: {reason(error)}") from error


def _check_architecture(where: str, config: Any) -> None:
    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{where} is an encoder-decoder model ({kind}): use an encoder or a decoder-only model")
    model_class = MODEL_MAPPING.get(type(config), None)
    takes_text = getattr(model_class, "main_input_name", "input_ids") == "input_ids"
    if not takes_text or any(hasattr(config, part) for part in ("vision_config", "audio_config")):
        raise UserError(f"{where} is not a text model ({kind}): use a text encoder or a decoder-only language model")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise UserError(f"{where} ({kind}) has no single hidden_size: use a text encoder")


def _check_files(source: ModelSource, folder: str) -> None:
    if any(source.file(join(folder, name)) for name in _WEIGHTS):
        return
    found = next((name for name in _FOREIGN_WEIGHTS if source.file(join(folder, name))), None)
    hint = "" if found is None else f"; {found} cannot be read, convert it first"
    raise UserError(f"{join(source.name, folder)} has no weights (model.safetensors or pytorch_model.bin){hint}")


def _check_readable(source: ModelSource, folder: str) -> None:
    if source.is_local:
        for pattern in ("*.safetensors", "*.bin", "*.index.json"):
            for file in sorted(Path(source.name, folder).glob(pattern)):
                check_readable(file)


def _check_weights(where: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UserError(
            f"{where} lacks {len(missing)} of the {len(model.state_dict())} weights of its {type(model).__name__}, "
            f"{missing[0]} first: they would start random; use a complete model"
        )
    if report["mismatched_keys"]:
        name, saved, expected = sorted(report["mismatched_keys"])[0]
        raise UserError(
            f"{where}: {name} has the shape {tuple(saved)} in the weights, but {tuple(expected)} by the configuration"
        )


def _explain(where: str, error: Exception, attn_implementation: str | None) -> UserError:
    why = reason(error)
    if isinstance(error, SafetensorError | pickle.UnpicklingError | EOFError | IndexError):
        return UserError(f"the weights of {where} are damaged or cut short ({why}): copy or download them again")
    if attn_implementation is not None and ("attn" in why or "attention" in why.lower()):
        return UserError(f"--attn_implementation {attn_implementation} does not work for {where}: {why}")
    return UserError(f"cannot load the model {where}: {why}")


def _hub(source: ModelSource) -> dict[str, Any]:
    return {"cache_dir": source.cache_dir, "revision": source.revision or "main"}
