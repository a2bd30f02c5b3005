"""Examples by epoch: v1's choice of passages, worker processes, and rows without negatives."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from fastdense.data.tokenization import passage_identity
from fastdense.data.training_set import Example, TrainingSet
from fastdense.errors import UserError

N_ROWS = 12


@pytest.fixture
def rows(load: Callable[..., datasets.Dataset], tmp_path: Path, write_jsonl: Callable[..., Path]) -> datasets.Dataset:
    """12 rows with 1 to 3 positives and 4 or 5 negatives; token ids tell passages apart."""
    return load(write_jsonl(tmp_path / "rows.jsonl", [make_row(i) for i in range(N_ROWS)]))


def make_row(i: int) -> dict[str, Any]:
    positives = [[10 + i, 100 + j] for j in range(1 + i % 3)]
    return {"query": [5, 10 + i], "positives": positives, "negatives": [[10 + i, 110 + j] for j in range(4 + i % 2)]}


def v1_passages(i: int, n_passages: int, seed: int, epoch: int) -> list[list[int]]:
    row = make_row(i)
    negatives = list(row["negatives"])
    random.Random(i + seed).shuffle(negatives)
    k = n_passages - 1
    offset = epoch * k % len(negatives)
    positive = row["positives"][(i + seed + epoch) % len(row["positives"])]
    return [positive, *(negatives * 2)[offset : offset + k]]


@pytest.mark.parametrize("n_passages", [1, 2, 4])
def test_passages_are_v1s(rows: datasets.Dataset, n_passages: int) -> None:
    examples = TrainingSet(rows, n_passages, seed=42)
    for epoch in range(4):
        examples.set_epoch(epoch)
        for i in range(N_ROWS):
            assert examples[i].query == [5, 10 + i]
            assert examples[i].passages == v1_passages(i, n_passages, 42, epoch)


def test_no_shuffle(rows: datasets.Dataset) -> None:
    examples = TrainingSet(rows, 3, seed=42, positive_no_shuffle=True, negative_no_shuffle=True)
    examples.set_epoch(5)
    row = make_row(2)
    assert examples[2].passages == [row["positives"][0], *row["negatives"][:2]]


def test_one_side_unshuffled(rows: datasets.Dataset) -> None:
    shuffled = TrainingSet(rows, 3, seed=42)[2].passages
    positive_first = TrainingSet(rows, 3, seed=42, positive_no_shuffle=True)[2].passages
    negatives_first = TrainingSet(rows, 3, seed=42, negative_no_shuffle=True)[2].passages
    row = make_row(2)
    assert positive_first == [row["positives"][0], *shuffled[1:]]
    assert negatives_first == [shuffled[0], *row["negatives"][:2]]


def test_identities_go_with_the_passages(rows: datasets.Dataset) -> None:
    examples = TrainingSet(rows, 4, seed=1)
    by_passage: dict[tuple[int, ...], int] = {}
    for epoch in range(5):
        examples.set_epoch(epoch)
        for i in range(N_ROWS):
            example = examples[i]
            for ids, identity in zip(example.passages, example.identities, strict=True):
                assert by_passage.setdefault(tuple(ids), identity) == identity
    assert len(set(by_passage.values())) == len(by_passage)


def test_too_few_negatives_are_repeated(rows: datasets.Dataset) -> None:
    first, again = TrainingSet(rows, 9, seed=3), TrainingSet(rows, 9, seed=3)
    for examples in (first, again):
        examples.set_epoch(2)
    assert len(first[0].passages) == 9
    assert first[0] == again[0]
    assert {tuple(ids) for ids in first[0].passages[1:]} <= {tuple(ids) for ids in make_row(0)["negatives"]}


def test_rows_that_were_selected(rows: datasets.Dataset) -> None:
    examples = TrainingSet(rows.select([7, 3]), 2, seed=0)
    assert len(examples) == 2
    assert examples[1].query == [5, 13]


def only_example(batch: list[Example]) -> Example:
    return batch[0]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_new_epoch_reaches_persistent_workers(rows: datasets.Dataset, context: str) -> None:
    examples = TrainingSet(rows, 3, seed=42)
    loader = DataLoader(
        examples, num_workers=2, persistent_workers=True, multiprocessing_context=context, collate_fn=only_example
    )
    for epoch in range(3):
        examples.set_epoch(epoch)
        assert [example.passages for example in loader] == [v1_passages(i, 3, 42, epoch) for i in range(N_ROWS)]


@pytest.fixture
def rows_without(load: Callable[..., datasets.Dataset], tmp_path: Path, write_jsonl: Callable[..., Path]) -> Any:
    """Four rows of which the second and third have no negative."""
    rows = [make_row(i) for i in range(4)]
    del rows[1]["negatives"]
    rows[2]["negatives"] = []
    return load(write_jsonl(tmp_path / "without.jsonl", rows))


def test_without_negatives_the_positive_comes_alone(rows_without: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fastdense"):
        examples = TrainingSet(rows_without, 3, seed=0)
    assert [len(examples[i].passages) for i in range(4)] == [3, 1, 1, 3]
    assert caplog.messages == [
        "2 of 4 rows have no negative passages; they train against the other passages of their batch alone"
    ]


def test_without_negatives_refused(rows_without: Any, tmp_path: Path) -> None:
    message = rf"{tmp_path}/without.jsonl, line 2: the row has no negative passage, .* --missing_negatives in_batch"
    with pytest.raises(UserError, match=message):
        TrainingSet(rows_without, 3, seed=0, missing_negatives="error")


def test_without_negatives_is_fine_when_none_are_wanted(rows_without: Any, caplog: pytest.LogCaptureFixture) -> None:
    TrainingSet(rows_without, 1, seed=0, missing_negatives="error")
    assert not caplog.records


def test_complete_rows_are_not_warned_about(rows: datasets.Dataset, caplog: pytest.LogCaptureFixture) -> None:
    TrainingSet(rows, 3, seed=0, missing_negatives="error")
    assert not caplog.records


def test_no_passages(rows: datasets.Dataset) -> None:
    with pytest.raises(UserError, match="--train_n_passages is 0, at least 1"):
        TrainingSet(rows, 0, seed=0)


def test_the_epoch_is_shared_memory(rows: datasets.Dataset) -> None:
    shared = [value for value in vars(TrainingSet(rows, 2, seed=0)).values() if isinstance(value, torch.Tensor)]
    assert [tensor.is_shared() for tensor in shared] == [True]


def test_scores_go_with_the_passages(load: Callable[..., datasets.Dataset], tmp_path: Path, write_jsonl: Any) -> None:
    examples = TrainingSet(load(write_jsonl(tmp_path / "rows.jsonl", [_scored(i) for i in range(N_ROWS)])), 3, seed=1)
    taught = TrainingSet(examples._rows, 3, seed=1, teacher_scores=True)
    scores = {passage_identity(f"{kind}{j}", []): 0.5 * j - (kind == "n") for kind in "pn" for j in range(5)}
    for epoch in range(3):
        examples.set_epoch(epoch)
        taught.set_epoch(epoch)
        for i in range(N_ROWS):
            assert taught[i].passages == examples[i].passages
            assert taught[i].scores == [scores[number] for number in taught[i].identities]
    assert examples[0].scores is None


def _scored(i: int) -> dict[str, Any]:
    positives, negatives = (
        [{"text": f"castle {j}", "docid": f"{kind}{j}", "score": 0.5 * j - (kind == "n")} for j in range(n)]
        for kind, n in (("p", 1 + i % 3), ("n", 4 + i % 2))
    )
    return {"query": "castle", "positive_passages": positives, "negative_passages": negatives}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"pos": ["castle"], "neg": ["eagle"]}, "positive passage 1"),
        ({"pos": ["castle", "stone"], "pos_scores": [1, None]}, "positive passage 2"),
        (
            {"pos": ["castle"], "neg": ["eagle", "stone"], "pos_scores": [1], "neg_scores": [1, "x"]},
            "negative passage 2",
        ),
    ],
)
def test_a_row_without_a_teacher_s_score_is_named(
    load: Any, tmp_path: Path, write_jsonl: Any, row: dict[str, Any], place: str
) -> None:
    whole = {"query": "who", "pos": ["castle", "stone"], "neg": ["eagle"], "pos_scores": [1, 2], "neg_scores": [0]}
    rows = load(write_jsonl(tmp_path / "rows.jsonl", [*[whole] * 300, {"query": "who", **row}]))  # several batches
    TrainingSet(rows, 2, seed=0)
    with pytest.raises(UserError, match=rf"rows\.jsonl, line 301: {place} has no teacher score for --distil_temp"):
        TrainingSet(rows, 2, seed=0, teacher_scores=True)


def test_one_passage_has_nothing_to_be_compared_with(rows: datasets.Dataset) -> None:
    with pytest.raises(UserError, match="--distil_temperature compares the passages .* --train_n_passages 1"):
        TrainingSet(rows, 1, seed=0, teacher_scores=True)
