"""The README.md of a saved retriever."""

import json
from pathlib import Path

from fastdense.modeling.settings import RetrieverSettings

_POOLING = {"cls": "first token (CLS)", "mean": "mean of all tokens", "last": "last token"}


def model_card(settings: RetrieverSettings, dimension: int) -> str:
    """Markdown with the hub's metadata, what the model is, and how to use it."""
    return "\n".join([*_metadata(settings), "", *_description(settings, dimension), "", *_usage(), ""])


def _metadata(settings: RetrieverSettings) -> list[str]:
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    lines += ["tags:", "- sentence-transformers", "- feature-extraction", "- dense-retrieval"]
    if settings.base_model is not None and not Path(settings.base_model).exists():
        lines.append(f"base_model: {json.dumps(settings.base_model)}")
    return [*lines, "---"]


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
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return [
        "# Dense retriever",
        "",
        "Maps queries and passages to vectors; the best passages score highest.",
        "",
        *table,
    ]


def _usage() -> list[str]:
    return [
        "## Usage",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'model = SentenceTransformer("path/to/this/directory")',
        'queries = model.encode_query(["What is a dense retriever?"])',
        'passages = model.encode_document(["A dense retriever maps texts to vectors."])',
        "scores = model.similarity(queries, passages)",
        "```",
        "",
        "A title goes before the passage's text, with the separator above between them. The prefixes are applied by",
        "`encode_query` and `encode_document`. Trained with fastdense.",
    ]
