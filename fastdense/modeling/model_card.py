"""The README.md of a saved retriever."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastdense.modeling.settings import RetrieverSettings

_POOLING = {"cls": "first token (CLS)", "mean": "mean of all tokens", "last": "last token"}


@dataclass(frozen=True)
class Provenance:
    """Where a retriever comes from. Its card leaves out what is empty."""

    repository: str | None = None  # the name on the hub
    datasets: tuple[str, ...] = ()  # names on the hub
    facts: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str | None] = field(default_factory=dict)  # on what was held out
    metrics_step: int | None = None  # of the model that they measured
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


NOT_RECORDED = Provenance()


def model_card(settings: RetrieverSettings, dimension: int, origin: Provenance = NOT_RECORDED) -> str:
    """Markdown with the hub's metadata, what the model is, how to use it, and how it was made."""
    parts = [
        _metadata(settings, origin.datasets),
        _description(settings, dimension),
        _usage(origin.repository or "path/to/this/directory"),
        *_training(origin),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _metadata(settings: RetrieverSettings, datasets: tuple[str, ...]) -> list[str]:
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += ["tags:", "- sentence-transformers", "- feature-extraction", "- dense-retrieval"]
    if settings.base_model is not None and not Path(settings.base_model).exists():
        lines.append(f"base_model: {json.dumps(settings.base_model)}")
    if datasets:
        lines += ["datasets:", *(f"- {json.dumps(name)}" for name in datasets)]
    return [*lines, "---"]


def _training(origin: Provenance) -> list[list[str]]:
    parts = []
    if origin.facts:
        parts.append(["## Training", "", *_table(origin.facts)])
    if origin.metrics:
        parts.append(
            [f"On what was held out, by the model of step {origin.metrics_step}:", "", *_table(origin.metrics)]
        )
    if origin.command:
        parts.append(["```bash", origin.command, "```"])
    if origin.versions:
        parts.append(["Made with " + ", ".join(f"{name} {number}" for name, number in origin.versions.items()) + "."])
    return parts


def _table(rows: Mapping[str, str | None]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]


def _description(settings: RetrieverSettings, dimension: int) -> list[str]:
    score = "cosine similarity" if settings.normalize else "inner product"
    encoders = "one encoder for both" if settings.tied else "separate query and passage encoders"
    rows = {
        "Base model": settings.base_model or "not recorded",
        "Encoders": encoders,
        "Dimensions": str(dimension),
        "Score": score,
        "Pooling": _POOLING[settings.pooling] + (", then a linear projection" if settings.projection_out_dim else ""),
        "Longest query / passage": f"{settings.q_max_len or 'any'} / {settings.p_max_len or 'any'} tokens",
        "Query prefix": f"`{json.dumps(settings.query_prefix, ensure_ascii=False)}`",
        "Passage prefix": f"`{json.dumps(settings.passage_prefix, ensure_ascii=False)}`",
        "Between title and text": f"`{json.dumps(settings.passage_field_separator, ensure_ascii=False)}`",
    }
    if settings.matryoshka_dims is not None:
        rows["Dimensions"] += f"; trained to be cut to {', '.join(map(str, settings.matryoshka_dims))}"
    return [
        "# Dense retriever",
        "",
        "Maps queries and passages to vectors; the best passages score highest.",
        "",
        *_table(rows),
    ]


def _usage(name: str) -> list[str]:
    return [
        "## Usage",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f"model = SentenceTransformer({json.dumps(name)})",
        'queries = model.encode_query(["What is a dense retriever?"])',
        'passages = model.encode_document(["A dense retriever maps texts to vectors."])',
        "scores = model.similarity(queries, passages)",
        "```",
        "",
        "A title goes before the passage's text, with the separator above between them. The prefixes are applied by",
        "`encode_query` and `encode_document`. Trained with fastdense.",
    ]
