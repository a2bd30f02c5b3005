"""Measures against values computed by hand."""

import math
import sys

import numpy as np
import pytest

from fastdense.errors import UserError
from fastdense.retrieval.evaluate import evaluate_run, parse_measure
from fastdense.retrieval.qrels import read_qrels
from fastdense.retrieval.rankings import Ranked, read_run


def ranking(*passage_ids: str) -> Ranked:
    return Ranked(list(passage_ids), np.arange(len(passage_ids), 0, -1, dtype=np.float32))


@pytest.fixture
def run():
    """q1 finds its passage at rank 2, q2 one of two at rank 1, q3 its own at rank 11, q4 nothing, q5 is not judged."""
    return {
        "q1": ranking("x", "a"),
        "q2": ranking("b", "x", "y"),
        "q3": ranking(*(f"x{i}" for i in range(10)), "c"),
        "q5": ranking("a"),
    }


@pytest.fixture
def qrels():
    return {"q1": {"a": 1}, "q2": {"b": 2, "d": 1, "x": 0}, "q3": {"c": 1}, "q4": {"e": 1}}


def test_hand_computed_values(qrels, run):
    values = evaluate_run(qrels, run, ["RR@10", "mrr@10", "R@10", "recall@100", "ndcg@10"])
    assert list(values) == ["RR@10", "mrr@10", "R@10", "recall@100", "ndcg@10"]
    assert values["RR@10"] == values["mrr@10"] == pytest.approx((1 / 2 + 1 + 0 + 0) / 4)
    assert values["R@10"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert values["recall@100"] == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)
    ideal = 2 + 1 / math.log2(3)
    assert values["ndcg@10"] == pytest.approx((1 / math.log2(3) + 2 / ideal) / 4)


def test_defaults_are_the_fields_four_measures(qrels, run):
    assert list(evaluate_run(qrels, run)) == ["RR@10", "nDCG@10", "R@10", "R@100"]


def test_every_measure_sees_the_same_order_among_equal_scores(tmp_path):
    path = tmp_path / "run.txt"
    path.write_text("q\ta\t1.0\nq\tb\t1.0\n")
    values = evaluate_run({"q": {"a": 1}}, read_run(path), ["RR@10", "R@1", "nDCG@1", "P@1"])
    assert values == {"RR@10": 0.5, "R@1": 0.0, "nDCG@1": 0.0, "P@1": 0.0}  # trec_eval: id descending


def test_a_query_without_a_relevant_passage_counts_zero(run):
    assert evaluate_run({"q1": {"a": 1}, "q2": {"b": 0}}, run, ["mrr@10", "recall@10"]) == {
        "mrr@10": 0.25,
        "recall@10": 0.5,
    }


@pytest.mark.parametrize("name", ["nDGC@10", "mrr@0", "mrr@x", "", "R", "recall@", "a(b"])
def test_unknown_measure(qrels, run, name):
    with pytest.raises(UserError, match=r"measure"):
        evaluate_run(qrels, run, [name])


def test_unknown_measure_is_answered_with_the_nearest(qrels, run):
    with pytest.raises(UserError, match=r"unknown measure 'nDGC@10': did you mean nDCG@10\?"):
        evaluate_run(qrels, run, ["nDGC@10"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("success@5", "Success@5"),
        ("SUCCESS@5", "Success@5"),
        ("Succes@5", "Success@5"),
        ("success", "Success@10"),
        ("success_5", "Success@5"),
        ("recip_rank", "RR"),
        ("ndcg_cut_20", "nDCG@20"),
        ("recall", "R@10"),
        ("numret@10", "NumRet"),
        ("err", "ERR@10"),
    ],
)
def test_the_nearest_measure_is_one(qrels, run, name, near):
    with pytest.raises(UserError, match=rf"unknown measure '{name}': did you mean {near}\?"):
        evaluate_run(qrels, run, [name])
    parse_measure(near)


def test_no_query_in_common(qrels):
    with pytest.raises(UserError, match="different query sets"):
        evaluate_run(qrels, {"other": ranking("a")})


def test_without_ir_measures_the_sentence_names_the_extra(qrels, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(UserError, match=r"pip install 'fastdense\[retrieval\]'"):
        evaluate_run(qrels, run)


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 a 1\nq1 0 b 0\n\nq2 0 c 2\n",
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\nq2\tc\t2\n",
        "q1\t0\ta\t1\r\nq1\t0\tb\t0\r\nq2\t0\tc\t2",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_qrels_of_trec_and_beir(tmp_path, text, encoding):
    path = tmp_path / "qrels"
    path.write_text(text, encoding=encoding)
    assert read_qrels(path) == {"q1": {"a": 1, "b": 0}, "q2": {"c": 2}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("q1 0 a 1\nq1 0 b\n", "qrels, line 2: .*whole number was expected, not 'q1 0 b'"),
        ("q1 0 a x\n", "qrels, line 1: "),
        ("q1 0 a 1\nq1 0 a 0\n", "qrels, line 2: 'a' has another relevance for 'q1'"),
        ("\n", "qrels holds no relevance judgements"),
    ],
)
def test_malformed_qrels(tmp_path, text, sentence):
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_qrels(path)


def test_missing_qrels(tmp_path):
    with pytest.raises(UserError, match="there is no file of relevance judgements at"):
        read_qrels(tmp_path / "none")
