"""Streams of rows as examples: who takes which, in which order, with which passages, and what is said of bad ones."""

import itertools
from collections.abc import Callable
from typing import Any

import datasets
import pytest
from torch.utils.data import DataLoader

from fastdense.data.streaming import PassageChoice, StreamedSet, StreamOrder
from fastdense.data.tokenization import TextRules, passage_identity
from fastdense.errors import UserError

N_ROWS = 40
IN_TURN = StreamOrder(seed=3, buffer=0)
Make = Callable[..., StreamedSet]


def row(number: int, **others: Any) -> dict[str, Any]:
    """The query tells rows apart, the second token tells passages apart."""
    negatives = [[10 + number, 60 + i] for i in range(4)]
    return {
        "query": [5, 10 + number],
        "positives": [[10 + number, 50], [10 + number, 51]],
        "negatives": negatives,
    } | others


@pytest.fixture
def make(tokenizer: Any) -> Make:
    """``make(rows, order, shards=1, **choice)``."""

    def make_set(
        rows: list[dict[str, Any]], order: StreamOrder = IN_TURN, shards: int = 1, **choice: Any
    ) -> StreamedSet:
        stream = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards) if rows else iter(())
        rules = TextRules.of(tokenizer, q_max_len=8, p_max_len=8, separator=" ", query_prefix="", passage_prefix="")
        settings = {"n_passages": 3, "seed": 1} | choice
        return StreamedSet(stream, "org/name, split train", tokenizer, rules, PassageChoice(**settings), order)

    return make_set


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [row(number) for number in range(N_ROWS)]


def numbers(examples: StreamedSet, count: int) -> list[int]:
    return [example.query[1] - 10 for example in itertools.islice(examples, count)]


def test_rows_come_whole_and_in_turn_without_a_buffer(make: Make, rows: list[dict[str, Any]]) -> None:
    streamed = make(rows)
    assert numbers(streamed, 2 * N_ROWS) == [*range(N_ROWS)] * 2
    for example in itertools.islice(streamed, N_ROWS):
        assert {ids[0] for ids in example.passages} == {example.query[1]}
        assert [ids[1] // 10 for ids in example.passages] == [5, 6, 6]
        assert example.identities == [passage_identity(None, ids) for ids in example.passages]
        assert example.scores is None


def test_passes_rotate_the_passages_as_those_of_files_do(make: Make, rows: list[dict[str, Any]]) -> None:
    examples = iter(make(rows, StreamOrder(3, 16)))
    by_query = [{one.query[1]: one.passages for one in itertools.islice(examples, N_ROWS)} for _ in range(2)]
    for number, first in by_query[0].items():
        second = by_query[1][number]
        assert first[0] != second[0]  # two positives take turns
        assert {ids[1] for ids in first[1:] + second[1:]} == {60, 61, 62, 63}  # four negatives, two at a time


def test_a_buffer_shuffles_every_pass_anew_by_the_seed_alone(make: Make, rows: list[dict[str, Any]]) -> None:
    order = numbers(make(rows, StreamOrder(3, 16), shards=4), 2 * N_ROWS)
    first, second = order[:N_ROWS], order[N_ROWS:]
    assert sorted(first) == sorted(second) == [*range(N_ROWS)]
    assert first != [*range(N_ROWS)]
    assert first != second
    again = make(rows, StreamOrder(3, 16), shards=4)
    assert numbers(again, 5) == order[:5]
    assert numbers(again, 2 * N_ROWS) == order  # from the beginning, whatever was read before
    assert numbers(make(rows, StreamOrder(4, 16), shards=4), N_ROWS) != first


@pytest.mark.parametrize("shards", [1, 4, 3], ids="{} shards".format)
@pytest.mark.parametrize("buffer", [0, 16])
def test_every_process_takes_rows_of_its_own(make: Make, rows: list[dict[str, Any]], shards: int, buffer: int) -> None:
    taken = [numbers(make(rows, StreamOrder(3, buffer, rank, 2), shards), N_ROWS // 2) for rank in range(2)]
    assert sorted(taken[0] + taken[1]) == [*range(N_ROWS)]


def test_worker_processes_share_the_rows_too(make: Make, rows: list[dict[str, Any]]) -> None:
    loader = DataLoader(make(rows, StreamOrder(3, 8), shards=2), batch_size=4, num_workers=2, collate_fn=list)
    examples = [example for batch in itertools.islice(loader, N_ROWS // 4) for example in batch]
    assert sorted(example.query[1] - 10 for example in examples) == [*range(N_ROWS)]


def test_a_worker_without_rows_ends_and_the_others_go_on(make: Make, rows: list[dict[str, Any]]) -> None:
    loader = DataLoader(make(rows), batch_size=4, num_workers=2, collate_fn=list)
    examples = [example for batch in itertools.islice(loader, N_ROWS // 2) for example in batch]
    assert [example.query[1] - 10 for example in examples] == [*range(N_ROWS)] * 2


def test_scores_of_a_teacher_come_along(make: Make) -> None:
    texts = {
        "query": "castle",
        "pos": ["stone"],
        "neg": ["eagle", "pebble"],
        "pos_scores": [2.0],
        "neg_scores": [1.0, 0.5],
    }
    scores = next(iter(make([texts], teacher_scores=True, negative_no_shuffle=True))).scores
    assert scores == [2.0, 1.0, 0.5]
    with pytest.raises(UserError, match="'castle': a passage has no teacher score for --distil_temperature"):
        make([{**texts, "neg_scores": [1.0, None]}], teacher_scores=True)
    with pytest.raises(UserError, match="--train_n_passages 1"):
        make([texts], teacher_scores=True, n_passages=1)


BAD = {"query": "castle", "positive_passages": [{"text": "stone"}], "negative_passages": [{"text": "eagle"}]}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"query": None}, r"org/name, split train, the row \{'query': None, .*: the field query is missing"),
        ({"positive_passages": []}, "the row {'query': 'castle', .*: the field positive_passages is empty"),
        ({"query": ""}, "org/name, split train, the row with the query .*: the query is empty"),
    ],
)
def test_a_bad_row_is_named_when_it_comes(make: Make, bad: dict[str, Any], message: str) -> None:
    streamed = make([BAD] * 70 + [{**BAD, **bad}])
    assert len(list(itertools.islice(streamed, 64))) == 64
    with pytest.raises(UserError, match=message):
        list(itertools.islice(streamed, 71))


def test_a_first_row_that_is_bad_is_found_before_training(make: Make) -> None:
    with pytest.raises(UserError, match="no field holds positive passages: .* the row has query, context"):
        make([{"query": "castle", "context": "stone"}])
    with pytest.raises(UserError, match="'castle': the row has no negative passage, but --train_n_passages is 3"):
        make([{**BAD, "negative_passages": None}], missing_negatives="error")
    with pytest.raises(UserError, match="there are no rows in it"):
        make([])


def test_a_stream_that_breaks_off_says_how_to_go_on(make: Make) -> None:
    streamed = make([BAD] * 100)

    def broken() -> Any:
        yield from [BAD] * 70
        raise ConnectionError("the hub is gone\nand so on")

    streamed._stream = datasets.IterableDataset.from_generator(broken)
    with pytest.raises(UserError, match=r"the stream broke off \(.*\); go on from the last checkpoint with --resume"):
        list(itertools.islice(streamed, 100))
