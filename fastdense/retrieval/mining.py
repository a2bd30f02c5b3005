"""Hard negatives: passages that score high for a query and are none of its known positives.

The thresholds are those of sentence-transformers' ``mine_hard_negatives``: ``relative_margin`` 0.05 is the
TopK-PercPos (95 %) of NV-Retriever (Moreira et al., 2024). Where a query has several positives, the one with the lowest
score counts. Ranks count as in FlagEmbedding: every passage found has one, known positives too.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fastdense.retrieval.nearest import search_device
from fastdense.retrieval.rankings import Ranked
from fastdense.retrieval.representations import Representations
from fastdense.retrieval.search import inner_products, search_shards

POSITIVE = "known positives"
NO_POSITIVE = "no positive in the corpus to keep a margin to"


@dataclass(frozen=True)
class MiningRules:
    """Which of the passages found for a query become its negatives.

    Attributes:
        num_negatives: how many a query gets at most.
        range_min, range_max: ranks (from 0) that are looked at: ``range_min`` to ``range_max - 1``.
        max_score, min_score: a negative's score is neither above nor below.
        absolute_margin: a negative's score plus this is at most its query's lowest positive's.
        relative_margin: the same with this share of the positive score's magnitude.
        sampling_strategy: ``top`` takes the best of what the rules leave, ``random`` any of it.
        seed: of the sampling, which is a function of it and the query's id alone.
    """

    num_negatives: int
    range_min: int = 0
    range_max: int = 200
    max_score: float | None = None
    min_score: float | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling_strategy: Literal["random", "top"] = "random"
    seed: int = 42

    def discards(self, scores: NDArray[np.floating], positive: float) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Every rule with the ``scores`` [k] that it discards; ``positive`` is the lowest positive's, or NaN."""
        scores = scores.astype(np.float64)
        if self.absolute_margin is not None or self.relative_margin is not None:
            yield NO_POSITIVE, np.full(len(scores), np.isnan(positive))
        if self.absolute_margin is not None:
            yield f"absolute_margin {self.absolute_margin}", scores + self.absolute_margin > positive
        if self.relative_margin is not None:
            yield f"relative_margin {self.relative_margin}", scores > positive - abs(positive) * self.relative_margin
        if self.max_score is not None:
            yield f"max_score {self.max_score}", scores > self.max_score
        if self.min_score is not None:
            yield f"min_score {self.min_score}", scores < self.min_score

    def choose(self, query_id: str, count: int) -> list[int]:
        """Which of ``count`` passages that no rule discards become negatives, best first."""
        if self.sampling_strategy == "top" or count <= self.num_negatives:
            return list(range(min(count, self.num_negatives)))
        return sorted(random.Random(f"{self.seed}:{query_id}").sample(range(count), self.num_negatives))


@dataclass
class MiningSummary:
    """How many negatives were found, and how hard they are; the discarded count for the first rule that hits them."""

    queries: int = 0
    short: int = 0
    """Queries with fewer negatives than asked for, those without any included."""
    empty: int = 0
    found: int = 0
    """Passages that the search found for a query; fewer than asked for where the corpus holds no more."""
    candidates: int = 0
    discarded: Counter[str] = field(default_factory=Counter)
    negatives: int = 0
    negative_score: float = 0.0
    """Sums, of all negatives' and all known positives' scores."""
    positives: int = 0
    positive_score: float = 0.0
    harder: int = 0
    """Negatives that score above their query's lowest positive."""

    def commonest(self) -> str:
        """The rule that discarded most."""
        rule, count = max(self.discarded.items(), key=lambda item: item[1], default=("no rule", 0))
        return f"discarded, {rule}: {_share(count, self.candidates)}"

    def advice(self, rules: MiningRules) -> str:
        """Why there are no negatives at all under ``rules``, and which flags would leave some."""
        if self.found <= rules.range_min:
            return (
                f"--range_min {rules.range_min} skips all {self.found} passages of --passage_reps, so no query has a "
                "negative: lower it"
            )
        if self.found < rules.range_max:  # a larger one finds nothing more
            flags = "lower --range_min or loosen" if rules.range_min else "loosen"
            advice = f"{flags} the thresholds, or search more than {self.found} passages"
        else:
            advice = "raise --range_max or loosen the thresholds"
        return f"the rules leave no query a negative ({self.commonest()}): {advice}"

    def lines(self) -> Iterator[str]:
        """The summary as text."""
        yield f"{self.negatives} negatives for {self.queries} queries"
        for name, total, count in (
            ("positives", self.positive_score, self.positives),
            ("negatives", self.negative_score, self.negatives),
        ):
            yield f"mean score of {name}: " + (f"{total / count:.4f} ({count})" if count else "none")
        yield f"negatives that score above a positive of their query: {_share(self.harder, self.negatives)}"
        yield f"candidates: {self.candidates}"
        for rule, count in self.discarded.items():
            yield f"discarded, {rule}: {_share(count, self.candidates)}"
        yield f"queries with fewer negatives than asked for: {_share(self.short, self.queries)}"
        yield f"queries without any: {_share(self.empty, self.queries)}"


def mine_negatives(
    queries: Representations,
    positives: Sequence[AbstractSet[str]],
    shards: Iterable[Representations],
    rules: MiningRules,
    *,
    batch_size: int = 128,
    on_batch: Callable[[int], object] | None = None,
) -> tuple[list[list[str]], MiningSummary]:
    """Search ``queries`` in the shards of a corpus and choose every query's negatives.

    Args:
        positives: the ids of every query's known positives and of their copies.
        shards: searched as :func:`fastdense.retrieval.search.search_shards` does, in its memory.
        batch_size, on_batch: see there.

    Returns:
        The ids of every query's negatives, best first, and how hard they are.

    Raises:
        UserError: see :func:`fastdense.retrieval.search.search_shards`.
    """
    scores = _PositiveScores(queries, positives)
    run = search_shards(queries, scores.watch(shards), rules.range_max, batch_size, on_batch, search_device())
    summary = MiningSummary(
        queries=len(queries.ids), positives=int(scores.counts.sum()), positive_score=float(scores.sums.sum())
    )
    chosen = [
        _choose(query_id, run[query_id], known, float(lowest), rules, summary)
        for query_id, known, lowest in zip(queries.ids, positives, scores.lowest, strict=True)
    ]
    return chosen, summary


def _choose(
    query_id: str,
    found: Ranked,
    known: AbstractSet[str],
    lowest: float,
    rules: MiningRules,
    summary: MiningSummary,
) -> list[str]:
    ids, scores = found.passage_ids[rules.range_min :], found.scores[rules.range_min :]
    left = np.ones(len(ids), dtype=bool)
    known_mask = np.fromiter((passage_id in known for passage_id in ids), dtype=bool, count=len(ids))
    for rule, hit in [(POSITIVE, known_mask), *rules.discards(scores, lowest)]:
        if count := int((left & hit).sum()):
            summary.discarded[rule] += count
        left &= ~hit
    kept = np.flatnonzero(left)
    chosen = kept[rules.choose(query_id, len(kept))]
    summary.found = max(summary.found, len(found.passage_ids))
    summary.candidates += len(ids)
    summary.negatives += len(chosen)
    summary.negative_score += float(scores[chosen].sum(dtype=np.float64))
    summary.harder += int((scores[chosen] > lowest).sum())
    summary.short += len(chosen) < rules.num_negatives
    summary.empty += not len(chosen)
    return [ids[row] for row in chosen]


class _PositiveScores:
    """Every query's scores of its known positives, read off the shards as they pass by."""

    def __init__(self, queries: Representations, positives: Sequence[AbstractSet[str]]) -> None:
        self._queries = queries.rows(slice(None))
        self._rows: dict[str, list[int]] = {}
        for row, known in enumerate(positives):
            for passage_id in known:
                self._rows.setdefault(passage_id, []).append(row)
        self.lowest = np.full(len(positives), np.inf)
        """[Q]; NaN for a query that has no positive in the corpus (once all shards have passed by)."""
        self.sums = np.zeros(len(positives))
        self.counts = np.zeros(len(positives), dtype=np.int64)

    def watch(self, shards: Iterable[Representations]) -> Iterator[Representations]:
        for shard in shards:
            yield shard  # checked by the search before its vectors are multiplied here
            for number, passage_id in enumerate(shard.ids):
                if rows := self._rows.get(passage_id):
                    scores = inner_products(shard.rows(number), self._queries[rows])
                    self.lowest[rows] = np.minimum(self.lowest[rows], scores)
                    self.sums[rows] += scores
                    self.counts[rows] += 1
            del shard  # before the next is read
        self.lowest[self.counts == 0] = np.nan


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.2%})" if whole else str(part)
