"""Write a retriever so that sentence-transformers, AutoModel and Tevatron v1 can load it."""

import copy
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fastdense.modeling.encoder import Encoder, Retriever
from fastdense.modeling.layout import TOWER_FOLDERS
from fastdense.modeling.model_card import model_card
from fastdense.modeling.quiet import quiet_transformers
from fastdense.modeling.settings import OWN_FILE, RetrieverSettings, own_facts

# The class paths of sentence-transformers before 6.0: every release loads them, the newer ones it does not.
_MODULE_TYPE = "sentence_transformers.models."

_POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "last": "pooling_mode_lasttoken",
}


# Whatever decides what a directory is taken for when it is read; see retriever_entries.
_TELLING = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "modules.json",
    "router_config.json",
    "pooler.pt",
    "pooler_config.json",
    "[0-9]_*",
    *(folder for pair in TOWER_FOLDERS for folder in pair),
    *(f"{side}_{part}" for side in ("query", "passage") for part in ("pooling", "dense", "normalize")),
)


def retriever_entries(directory: Path) -> set[str]:
    """Names of the files and folders in ``directory`` that tell a reader which kind of retriever lies there."""
    return {entry.name for pattern in _TELLING for entry in directory.glob(pattern)}


def save_retriever(retriever: Retriever, tokenizer: Any, directory: str | Path, settings: RetrieverSettings) -> None:
    """Write everything a user of the retriever needs into an existing, empty directory.

    Weights keep their precision and are written as safetensors; the same retriever gives the same bytes. ``pooler.pt``,
    which is there for Tevatron's readers, repeats the projection. The caller makes the directory atomic.
    """
    directory = Path(directory)
    settings = settings.describing(retriever)
    tokenizer = _without_call_state(tokenizer)
    if retriever.tied:
        modules = _write_tied(retriever.query_encoder, tokenizer, directory, settings)
    else:
        modules = _write_untied(retriever, tokenizer, directory, settings)
    _write_json(directory / "modules.json", modules)
    _write_json(directory / "config_sentence_transformers.json", _sentence_transformers_config(settings))
    _write_json(directory / OWN_FILE, own_facts(settings))
    _write_tevatron_pooler(retriever, directory)
    (directory / "README.md").write_text(model_card(settings, retriever.query_encoder.dimension), encoding="utf-8")


def _write_tied(encoder: Encoder, tokenizer: Any, directory: Path, settings: RetrieverSettings) -> list[dict[str, Any]]:
    """Tokenizer and backbone at the root, the other parts in numbered folders; returns ``modules.json``."""
    _write_backbone(encoder.backbone, tokenizer, directory, settings.p_max_len)
    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write_pooling(encoder, directory / "1_Pooling")
    if encoder.projection is not None:
        parts.append(("Dense", "2_Dense"))
        _write_dense(encoder.projection, directory / "2_Dense")
    if encoder.normalize:
        parts.append(("Normalize", f"{len(parts)}_Normalize"))
    return [
        {"idx": i, "name": str(i), "path": path, "type": _MODULE_TYPE + kind} for i, (kind, path) in enumerate(parts)
    ]


def _write_untied(
    retriever: Retriever, tokenizer: Any, directory: Path, settings: RetrieverSettings
) -> list[dict[str, Any]]:
    """A sentence-transformers Router over the two encoders, in Tevatron's folders; returns ``modules.json``."""
    towers = {
        "query": _write_tower("query", retriever.query_encoder, tokenizer, directory, settings.q_max_len),
        "document": _write_tower("passage", retriever.passage_encoder, tokenizer, directory, settings.p_max_len),
    }
    router = {
        "types": {name: _MODULE_TYPE + kind for parts in towers.values() for name, kind in parts.items()},
        "structure": {task: list(parts) for task, parts in towers.items()},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    _write_json(directory / "router_config.json", router)
    # Tevatron and the tokenizer's own loader look at the root.
    retriever.config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return [{"idx": 0, "name": "0", "path": "", "type": _MODULE_TYPE + "Router"}]


def _write_tower(
    side: str, encoder: Encoder, tokenizer: Any, directory: Path, max_length: int | None
) -> dict[str, str]:
    """One encoder in folders that start with ``side``; returns folder name -> kind of module, in order."""
    backbone_folder = next(name for name in TOWER_FOLDERS[0] if name.startswith(side))
    parts = {backbone_folder: "Transformer", f"{side}_pooling": "Pooling"}
    _write_backbone(encoder.backbone, tokenizer, directory / backbone_folder, max_length)
    _write_pooling(encoder, directory / f"{side}_pooling")
    if encoder.projection is not None:
        parts[f"{side}_dense"] = "Dense"
        _write_dense(encoder.projection, directory / f"{side}_dense")
    if encoder.normalize:
        parts[f"{side}_normalize"] = "Normalize"
    return parts


def _write_backbone(backbone: PreTrainedModel, tokenizer: Any, folder: Path, max_length: int | None) -> None:
    with quiet_transformers():
        backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def _write_pooling(encoder: Encoder, folder: Path) -> None:
    flags = {
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": False,
        _POOLING_FLAGS[encoder.pooling]: True,
    }
    width = encoder.backbone.config.hidden_size
    _write_json(folder / "config.json", {"word_embedding_dimension": width, **flags, "include_prompt": True})


def _write_dense(projection: nn.Linear, folder: Path) -> None:
    config = {
        "in_features": projection.in_features,
        "out_features": projection.out_features,
        "bias": projection.bias is not None,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write_json(folder / "config.json", config)
    safetensors.torch.save_file(_named_weights(projection, "linear"), folder / "model.safetensors", {"format": "pt"})


def _write_tevatron_pooler(retriever: Retriever, directory: Path) -> None:
    query, passage = retriever.query_encoder.projection, retriever.passage_encoder.projection
    if query is None or passage is None:
        return
    # Both names even when they are one: that is how Tevatron's shared module is stored.
    weights = {**_named_weights(query, "linear_q"), **_named_weights(passage, "linear_p")}
    torch.save(weights, directory / "pooler.pt")
    config = {"input_dim": query.in_features, "output_dim": query.out_features, "tied": retriever.tied}
    if retriever.query_encoder.normalize:
        config["normalize"] = True  # a key that the older of Tevatron's readers do not take
    _write_json(directory / "pooler_config.json", config)


def _sentence_transformers_config(settings: RetrieverSettings) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "__version__": {},
        "prompts": {"query": settings.query_prefix, "document": settings.passage_prefix},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if settings.normalize else "dot",
    }


def _named_weights(linear: nn.Linear, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in linear.state_dict().items()}


def _without_call_state(tokenizer: Any) -> Any:
    """A copy without the truncation and padding of the last call, which a fast tokenizer would save along."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
