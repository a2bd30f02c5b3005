"""BM25, the yardstick: the same corpus, queries and judgements through bm25s."""

import re
from collections.abc import Sequence

import bm25s
from bm25s.stopwords import STOPWORDS_EN

from fastdense.retrieval.evaluate import evaluate_run
from fastdense.retrieval.evaluation_set import EvaluationSet
from fastdense.retrieval.rankings import make_run

_DEPTH = 100
# The words of identifiers count one by one: BM25 would take getElementsByTagName for one word, and lose unfairly.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def measure_bm25(texts: EvaluationSet, measures: Sequence[str]) -> dict[str, float]:
    """The ``measures`` of BM25 on ``texts``; title and text of a passage are one."""
    index = bm25s.BM25()
    index.index([_words(f"{passage.title or ''} {passage.text}") for passage in texts.passages], show_progress=False)
    places, scores = index.retrieve(
        [_words(query.text) for query in texts.queries], k=min(_DEPTH, len(texts.passages)), show_progress=False
    )
    query_ids = [query.text_id for query in texts.queries]
    run = make_run(query_ids, [passage.text_id for passage in texts.passages], scores, places)
    return evaluate_run(texts.qrels, run, measures)


def _words(text: str) -> list[str]:
    words = (word.lower() for word in _WORD.findall(text))
    return [word for word in words if word not in STOPWORDS_EN]
