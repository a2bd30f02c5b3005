"""How texts become vectors, as far as the weights do not say it: what a user of a saved retriever must know."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdense.errors import UserError
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.layout import Layout, check_dense, join, read_layout, read_prompts
from fastdense.modeling.source import ModelSource, open_source

OWN_FILE = "fastdense.json"

_NO_LIMIT = 10**6  # tokenizers without a limit store 1e30


@dataclass(frozen=True)
class RetrieverSettings:
    """Settings of a retriever; lengths count tokens, special ones included, and None means "not known".

    ``pooling``, ``normalize``, ``tied`` and the projection's widths describe the model: when saving, the retriever's
    own are written, whatever stands here.
    """

    query_prefix: str = ""
    passage_prefix: str = ""
    q_max_len: int | None = None
    p_max_len: int | None = None
    passage_field_separator: str = " "
    base_model: str | None = None
    pooling: str = "cls"
    normalize: bool = False
    tied: bool = True
    projection_in_dim: int | None = None
    projection_out_dim: int | None = None
    matryoshka_dims: tuple[int, ...] | None = None
    """lengths of the prefixes that were trained to stand alone, longest first; None for none"""

    def describing(self, retriever: Retriever) -> "RetrieverSettings":
        """These settings with the model's part taken from ``retriever``."""
        encoder = retriever.query_encoder
        projection = encoder.projection
        return replace(
            self,
            pooling=encoder.pooling,
            normalize=encoder.normalize,
            tied=retriever.tied,
            projection_in_dim=None if projection is None else projection.in_features,
            projection_out_dim=None if projection is None else projection.out_features,
        )


def read_settings(
    name_or_path: str | Path, *, cache_dir: str | None = None, revision: str | None = None
) -> RetrieverSettings | None:
    """The settings that a model directory brings, or None for a bare Hugging Face model, which says nothing.

    Raises:
        UserError: there is no such model, or its files contradict themselves.
    """
    source = open_source(str(name_or_path), cache_dir, revision)
    layout = read_layout(source)
    if layout.kind == "backbone":
        return None
    own = source.object(OWN_FILE) or {}
    query_prefix, passage_prefix = read_prompts(source)
    in_dim, out_dim = _projection_dims(source, layout)
    return RetrieverSettings(
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        q_max_len=_integer(source, OWN_FILE, "q_max_len") or _max_length(source, layout.query.backbone),
        p_max_len=_max_length(source, layout.passage.backbone),
        passage_field_separator=str(own.get("passage_field_separator", " ")),
        base_model=own.get("base_model"),
        pooling=layout.query.pooling or "cls",
        normalize=bool(layout.query.normalize),
        tied=layout.tied,
        projection_in_dim=in_dim,
        projection_out_dim=out_dim,
        matryoshka_dims=tuple(own.get("matryoshka_dims") or ()) or None,
    )


def own_facts(settings: RetrieverSettings) -> dict[str, Any]:
    """What ``fastdense.json`` holds: the settings that no file of another library has a place for."""
    return {
        "q_max_len": settings.q_max_len,
        "passage_field_separator": settings.passage_field_separator,
        "base_model": settings.base_model,
        "matryoshka_dims": settings.matryoshka_dims,
    }


def _integer(source: ModelSource, path: str, name: str) -> int | None:
    value = (source.object(path) or {}).get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{source}/{path}: {name} must be a whole number, not {value!r}")
    return value


def _max_length(source: ModelSource, folder: str) -> int | None:
    """The longest text of a Transformer module; sentence-transformers 6 leaves it to the tokenizer's settings."""
    own = _integer(source, join(folder, "sentence_bert_config.json"), "max_seq_length")
    if own is not None:
        return own
    length = (source.object(join(folder, "tokenizer_config.json")) or {}).get("model_max_length")
    return int(length) if length is not None and length < _NO_LIMIT else None


def _projection_dims(source: ModelSource, layout: Layout) -> tuple[int | None, int | None]:
    tower = layout.query
    if tower.dense is not None:
        config = check_dense(source, tower.dense)
        return config.get("in_features"), config.get("out_features")
    if tower.tevatron_linear is not None:
        config = source.object("pooler_config.json") or {}
        return config.get("input_dim"), config.get("output_dim")
    return None, None
