"""Row formats: what each is read as, and what is said about rows that are none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdense.data.rows import Passage, Row, RowError, RowFormat, detect_format, parse_row


def parse(row: Any) -> Row:
    return parse_row(row, detect_format(row))


def texts(passages: list[Passage]) -> list[str | None]:
    return [passage.text for passage in passages]


def test_tevatron() -> None:
    row = parse(
        {
            "query_id": "7",
            "query": "who",
            "answers": ["x"],
            "positive_passages": [{"docid": "d1", "title": "T", "text": "p"}, {"docid": 2, "text": "q"}],
            "negative_passages": [{"title": None, "text": "n"}],
        }
    )
    assert row == Row(
        query="who",
        query_ids=None,
        positives=[Passage("p", "T", "d1"), Passage("q", None, "2")],
        negatives=[Passage("n")],
    )


@pytest.mark.parametrize("extra", [{}, {"negative_passages": None}, {"negative_passages": []}])
def test_tevatron_without_negatives(extra: dict[str, Any]) -> None:
    assert parse({"query": "who", "positive_passages": [{"text": "p"}]} | extra).negatives == []


def test_tokenized() -> None:
    row = parse({"query": [1, 2], "positives": [[3], [4, 5]], "negatives": [[6]]})
    assert row == Row(None, [1, 2], [Passage(ids=[3]), Passage(ids=[4, 5])], [Passage(ids=[6])])


def test_strings_in_the_tokenized_format() -> None:
    row = parse({"query": "who", "positives": ["p"], "negatives": ["n"]})
    assert row == Row("who", None, [Passage("p")], [Passage("n")])


def test_flag_embedding() -> None:
    row = parse({"query": "who", "pos": ["p", "q"], "neg": ["n"], "pos_scores": [1.0, 0.5], "prompt": "Represent"})
    assert row == Row("who", None, [Passage("p", score=1.0), Passage("q", score=0.5)], [Passage("n")])


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.5, 0.5), (-3, -3.0), (None, None), ("high", None), (True, None), (float("nan"), None), (10**400, None)],
)
def test_a_teacher_s_score_is_a_finite_number_or_none(score: Any, expected: float | None) -> None:
    tevatron = parse({"query": "who", "positive_passages": [{"text": "p", "score": score}]})
    flag = parse({"query": "who", "pos": ["p"], "neg": ["n", "m"], "pos_scores": [score], "neg_scores": [1, score]})
    assert tevatron.positives == flag.positives == [Passage("p", score=expected)]
    assert flag.negatives == [Passage("n", score=1.0), Passage("m", score=expected)]


def test_scores_that_do_not_match_the_passages_are_none() -> None:
    row = parse({"query": "who", "pos": ["p", "q"], "pos_scores": [1.0], "neg": ["n"], "neg_scores": 3})
    assert row.positives == [Passage("p"), Passage("q")]
    assert row.negatives == [Passage("n")]


@pytest.mark.parametrize(
    ("row", "negatives"),
    [
        ({"anchor": "who", "positive": "p"}, []),
        ({"anchor": "who", "positive": "p", "negative": "n"}, ["n"]),
        ({"query": "who", "positive": "p", "negative": "n"}, ["n"]),
        ({"query": "who", "positive": "p", "negative_10": "c", "negative_2": "b", "negative_1": "a"}, ["a", "b", "c"]),
        ({"query": "who", "positive": "p", "negative1": "a", "negative2": None}, ["a"]),
        ({"question": "who", "answer": "p"}, []),
        ({"query": "who", "answer": "p"}, []),
        ({"query": "who", "positive": "p", "answer": "x", "negative": None}, []),
    ],
)
def test_flat(row: dict[str, Any], negatives: list[str]) -> None:
    parsed = parse(row)
    assert detect_format(row) is RowFormat.FLAT
    assert (parsed.query, texts(parsed.positives), texts(parsed.negatives)) == ("who", ["p"], negatives)


def test_columns_of_other_formats_that_are_null_do_not_count() -> None:
    row = {"query": "who", "positive_passages": None, "pos": ["p"], "neg": None, "negatives": None}
    assert detect_format(row) is RowFormat.FLAG_EMBEDDING


def test_an_answer_beside_positive_passages_is_ignored() -> None:
    assert detect_format({"query": "who", "answer": "x", "positive_passages": []}) is RowFormat.TEVATRON


PASSAGES = [{"text": "p"}]
BAD_ROWS = [
    (["a"], "the row is a list, an object"),
    ("a", "the row is a string"),
    (7, "the row is a number"),
    (None, "the row is missing or null"),
    ({}, "no field holds positive passages: .* the row has no fields"),
    ({"query": "who", "docs": []}, "no field holds positive passages: .* the row has query, docs"),
    ({"query": "who", "pos": ["p"], "positive": "p"}, "pos, positive belong to different row formats"),
    ({"query": "who", "positive": "p", "negatives": ["n"]}, "positive, negatives belong to different row formats"),
    ({"query": "who", "positive_passages": PASSAGES, "neg": ["n"]}, "positive_passages, neg belong to different"),
    ({"positive_passages": PASSAGES}, "the field query is missing or null, a string is expected"),
    ({"query": None, "positive_passages": PASSAGES}, "the field query is missing or null"),
    ({"query": 7, "positive_passages": PASSAGES}, "the field query is a number, a string"),
    ({"query": True, "positive_passages": PASSAGES}, "the field query is a boolean"),
    ({"query": ["who"], "pos": ["p"]}, "the field query is a list, a string"),
    ({"query": "who", "positive_passages": None}, "the field positive_passages is missing or null, a list"),
    ({"query": "who", "positive_passages": {}}, "the field positive_passages is an object, a list"),
    ({"query": "who", "positive_passages": []}, "the field positive_passages is empty, at least one positive"),
    ({"query": "who", "positives": []}, "the field positives is empty"),
    ({"query": "who", "pos": []}, "the field pos is empty"),
    ({"query": "who", "pos": "p"}, "the field pos is a string, a list"),
    ({"query": "who", "positive_passages": ["p"]}, r"the field positive_passages\[0\] is a string, an object"),
    ({"query": "who", "positive_passages": [{"title": "t"}]}, r"positive_passages\[0\].text is missing or null"),
    ({"query": "who", "positive_passages": [{"text": 1}]}, r"positive_passages\[0\].text is a number"),
    ({"query": "who", "positive_passages": [{"text": "p", "title": 1}]}, r"positive_passages\[0\].title is a number"),
    ({"query": "who", "positive_passages": [{"text": "p", "docid": 1.5}]}, r"\[0\].docid is a number, a string"),
    ({"query": "who", "positive_passages": [{"text": "p", "docid": True}]}, r"\[0\].docid is a boolean"),
    (
        {"query": "who", "positive_passages": PASSAGES, "negative_passages": [{"text": "n"}, {"text": None}]},
        r"the field negative_passages\[1\].text is missing or null",
    ),
    ({"query": "who", "positive_passages": PASSAGES, "negative_passages": "n"}, "negative_passages is a string"),
    ({"query": "who", "pos": ["p"], "neg": ["n", None]}, r"the field neg\[1\] is missing or null"),
    ({"query": "who", "pos": [["p"]]}, r"the field pos\[0\] is a list, a string"),
    ({"query": [1, "2"], "positives": [[1]]}, r"the field query\[1\] is a string, a token id"),
    ({"query": [1, True], "positives": [[1]]}, r"the field query\[1\] is a boolean"),
    ({"query": [1.0], "positives": [[1]]}, r"the field query\[0\] is a number, a token id"),
    ({"query": [1], "positives": [[1], [-1]]}, r"the field positives\[1\]\[0\] is -1, which is no token id"),
    ({"query": [1], "positives": [[2**31]]}, r"the field positives\[0\]\[0\] is 2147483648"),
    ({"query": [1], "positives": [1, 2]}, r"the field positives\[0\] is a number, a list of token ids"),
    ({"positive": "p"}, "no field holds the query: anchor, query or question"),
    ({"query": "who", "question": "who", "positive": "p"}, "query and question could each be the query"),
    ({"anchor": "who", "positive": None}, "the field positive is missing or null"),
    ({"anchor": "who", "positive": ["p"]}, "the field positive is a list, a string"),
    ({"anchor": "who", "positive": "p", "negative_2": 3}, "the field negative_2 is a number"),
    ({"query": "\ud800", "pos": ["p"]}, "the field query holds half a surrogate pair"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_row(row: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        parse(row)


NAMES = ["query", "anchor", "positive_passages", "positives", "pos", "positive", "negatives", "neg", "negative_1", "x"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "title", "docid"]), inner),
    max_leaves=6,
)


@given(VALUES | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_whatever_json_holds_is_a_row_or_a_row_error(value: Any) -> None:
    try:
        row = parse(value)
    except RowError:
        return
    assert (row.query is None) != (row.query_ids is None)
    assert row.positives
    for passage in row.positives + row.negatives:
        assert (passage.text is None) != (passage.ids is None)
