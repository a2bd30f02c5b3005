"""BM25, the yardstick: the same corpus, queries and judgements through bm25s."""

import re
from collections.abc import Callable, Sequence

import bm25s
from bm25s.stopwords import STOPWORDS_EN

from fastdense.retrieval.evaluate import evaluate_run
from fastdense.retrieval.evaluation_set import EvaluationSet
from fastdense.retrieval.rankings import make_run

_DEPTH = 100
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")

Words = Callable[[list[str]], list[list[str]]]


def measure_bm25(texts: EvaluationSet, measures: Sequence[str], words: Words) -> dict[str, float]:
    """The ``measures`` of BM25 on ``texts``; title and text of a passage are one. ``words`` splits texts."""
    index = bm25s.BM25()
    index.index(words([f"{passage.title or ''} {passage.text}" for passage in texts.passages]), show_progress=False)
    places, scores = index.retrieve(
        words([query.text for query in texts.queries]), k=min(_DEPTH, len(texts.passages)), show_progress=False
    )
    query_ids = [query.text_id for query in texts.queries]
    run = make_run(query_ids, [passage.text_id for passage in texts.passages], scores, places)
    return evaluate_run(texts.qrels, run, measures)


def stock_words(texts: list[str]) -> list[list[str]]:
    """Words as bm25s finds them by itself."""
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)


def identifier_words(texts: list[str]) -> list[list[str]]:
    """The words of identifiers one by one, as the model's tokenizer reads them: get, elements, by, tag, name."""
    return [[word for word in map(str.lower, _WORD.findall(text)) if word not in STOPWORDS_EN] for text in texts]
