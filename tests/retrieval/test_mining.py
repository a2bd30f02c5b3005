"""Which passages become hard negatives: against sentence-transformers and against the rules' own words."""

import dataclasses
import random
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers.util import mine_hard_negatives

from fastdense.retrieval.mining import NO_POSITIVE, POSITIVE, MiningRules, mine_negatives
from fastdense.retrieval.representations import Representations

N_QUERIES, N_PASSAGES = 30, 200


def unit_vectors(n: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, 12)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries() -> Representations:
    return Representations([f"q{i}" for i in range(N_QUERIES)], unit_vectors(N_QUERIES, 0))


@pytest.fixture(scope="module")
def passages() -> Representations:
    return Representations([f"d{i}" for i in range(N_PASSAGES)], unit_vectors(N_PASSAGES, 1))


@pytest.fixture(scope="module")
def scores(queries: Representations, passages: Representations) -> np.ndarray:
    return (queries.vectors.astype(np.float64) @ passages.vectors.T.astype(np.float64)).astype(np.float32)


@pytest.fixture(scope="module")
def positives(scores: np.ndarray) -> list[set[str]]:
    """One to three passages of ranks 0 to 60 for every query; a few of them score below zero."""
    rng = random.Random(0)
    order = np.argsort(-scores, axis=1)
    ranks = [rng.sample(range(150 if i % 5 == 0 else 60), 1 + i % 3) for i in range(N_QUERIES)]
    return [{f"d{order[i, rank]}" for rank in ranks[i]} for i in range(N_QUERIES)]


def peers_negatives(
    queries: Representations, passages: Representations, positives: list[set[str]], **rules: Any
) -> list[list[str]]:
    """The negatives of sentence-transformers' own function, whose model looks its vectors up."""
    vectors = dict(zip(queries.ids + passages.ids, [*queries.vectors, *passages.vectors], strict=True))

    def encode(texts: list[str], **_: Any) -> np.ndarray:
        return np.stack([vectors[text] for text in texts])

    model: Any = SimpleNamespace(
        device="cpu",
        encode_query=encode,
        encode_document=encode,
        similarity=lambda a, b: torch.as_tensor(a) @ torch.as_tensor(b).T,
        similarity_pairwise=lambda a, b: (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=1),
    )
    pairs = [(q, p) for q, known in zip(queries.ids, positives, strict=True) for p in sorted(known)]
    data = datasets.Dataset.from_dict({"query": [q for q, _ in pairs], "positive": [p for _, p in pairs]})
    rows = mine_hard_negatives(
        data, model, corpus=passages.ids, range_max=N_PASSAGES, output_format="triplet", verbose=False, **rules
    )
    found: dict[str, dict[str, None]] = {query: {} for query in queries.ids}
    for row in rows:
        found[row["query"]][row["negative"]] = None
    return [list(found[query]) for query in queries.ids]


@pytest.mark.filterwarnings("ignore")  # the peer's
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"max_score": 0.3},
        {"min_score": 0.35},
        {"absolute_margin": 0.0},
        {"absolute_margin": 0.2},
        {"relative_margin": 0.05},
        {"relative_margin": 0.5, "absolute_margin": 0.1, "max_score": 0.2, "min_score": -0.3},
    ],
    ids=str,
)
def test_the_thresholds_are_those_of_sentence_transformers(queries, passages, positives, rules):
    expected = peers_negatives(queries, passages, positives, num_negatives=7, **rules)
    ours = MiningRules(7, range_max=N_PASSAGES, sampling_strategy="top", **rules)
    negatives, _ = mine_negatives(queries, positives, [passages], ours)
    assert negatives == expected
    assert any(negatives)


EVERY_RULE = MiningRules(
    5, 3, 90, max_score=0.3, min_score=0.05, absolute_margin=0.01, relative_margin=0.1, sampling_strategy="random"
)


def test_every_negative_keeps_every_rule(queries, passages, positives, scores):
    negatives, summary = mine_negatives(queries, positives, [passages], EVERY_RULE)
    for row, (chosen, known) in enumerate(zip(negatives, positives, strict=True)):
        places = [int(passage_id[1:]) for passage_id in chosen]
        lowest = min(scores[row, int(p[1:])] for p in known)
        ranks = np.argsort(np.argsort(-scores[row]))[places]
        assert len(set(chosen)) == len(chosen) <= 5
        assert known.isdisjoint(chosen)
        assert all((ranks >= 3) & (ranks < 90))
        assert list(ranks) == sorted(ranks)
        assert all((scores[row, places] <= np.float32(0.3)) & (scores[row, places] >= np.float32(0.05)))
        assert all(scores[row, places] <= lowest - max(0.01, 0.1 * abs(lowest)))
    assert summary.short == sum(len(chosen) < 5 for chosen in negatives) > 0
    assert summary.empty == sum(not chosen for chosen in negatives)


def test_the_summary_counts_what_happened(queries, passages, positives, scores):
    negatives, summary = mine_negatives(queries, positives, [passages], EVERY_RULE)
    negative_scores = [scores[i, int(p[1:])] for i, chosen in enumerate(negatives) for p in chosen]
    positive_scores = [scores[i, int(p[1:])] for i, known in enumerate(positives) for p in known]
    assert summary.queries == N_QUERIES
    assert summary.candidates == N_QUERIES * 87
    assert (summary.negatives, summary.positives) == (len(negative_scores), len(positive_scores))
    assert summary.negative_score == pytest.approx(sum(map(float, negative_scores)), rel=1e-6)
    assert summary.positive_score == pytest.approx(sum(map(float, positive_scores)), rel=1e-6)
    assert summary.harder == 0  # as the margins want it
    loose = MiningRules(N_PASSAGES, 0, N_PASSAGES)
    assert mine_negatives(queries, positives, [passages], loose)[1].discarded == {POSITIVE: len(positive_scores)}
    assert f"mean score of positives: {np.mean(positive_scores):.4f} ({len(positive_scores)})" in summary.lines()
    assert f"queries with fewer negatives than asked for: {summary.short} ({summary.short / 30:.2%})" in summary.lines()


def test_what_a_rule_discards_and_what_is_left_add_up(queries, passages, positives):
    everything = dataclasses.replace(EVERY_RULE, num_negatives=87)
    _, summary = mine_negatives(queries, positives, [passages], everything)
    assert summary.negatives + sum(summary.discarded.values()) == summary.candidates
    assert set(summary.discarded) == {
        *(POSITIVE, "absolute_margin 0.01", "relative_margin 0.1", "max_score 0.3", "min_score 0.05")
    }


def test_batches_shards_and_other_queries_change_nothing(queries, passages, positives):
    expected, _ = mine_negatives(queries, positives, [passages], EVERY_RULE)
    shards = [Representations(passages.ids[i::3], passages.vectors[i::3]) for i in range(3)]
    assert mine_negatives(queries, positives, shards, EVERY_RULE, batch_size=7)[0] == expected
    half = Representations(queries.ids[1::2], queries.vectors[1::2])
    assert mine_negatives(half, positives[1::2], iter(shards), EVERY_RULE)[0] == expected[1::2]


def test_the_seed_decides_what_is_sampled(queries, passages, positives):
    chosen = [
        mine_negatives(queries, positives, [passages], dataclasses.replace(EVERY_RULE, seed=seed))[0]
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_sampling_reaches_every_rank_equally(queries, passages):
    rules = [MiningRules(10, 20, 40, seed=seed) for seed in range(60)]
    every = MiningRules(20, 20, 40, sampling_strategy="top")
    order = mine_negatives(queries, [set()] * N_QUERIES, [passages], every)[0]
    counts = np.zeros(20)
    for rule in rules:
        negatives, _ = mine_negatives(queries, [set()] * N_QUERIES, [passages], rule)
        for chosen, ranked in zip(negatives, order, strict=True):
            counts[[ranked.index(p) for p in chosen]] += 1
    assert counts.sum() == 60 * N_QUERIES * 10
    assert np.abs(counts / counts.mean() - 1).max() < 0.15  # five standard deviations of 1800 draws of one half


def test_a_margin_needs_a_positive_in_the_corpus(queries, passages):
    unknown = [{"elsewhere"}] * N_QUERIES
    negatives, summary = mine_negatives(queries, unknown, [passages], MiningRules(3, 0, 10, absolute_margin=0.1))
    assert not any(negatives)
    assert summary.discarded == {NO_POSITIVE: 10 * N_QUERIES}
    negatives, summary = mine_negatives(queries, unknown, [passages], MiningRules(3, 0, 10))
    assert all(len(chosen) == 3 for chosen in negatives)
    assert (summary.positives, summary.harder) == (0, 0)
    assert "mean score of positives: none" in summary.lines()


def test_negatives_above_their_positive_are_counted(queries, passages, scores):
    order = np.argsort(-scores, axis=1)
    fifth = [{f"d{row[4]}"} for row in order]
    rules = MiningRules(8, sampling_strategy="top")
    assert mine_negatives(queries, fifth, [passages], rules)[1].harder == 4 * N_QUERIES
