"""The demo: the commands that it shows, its yardstick, its picture, and one small run from start to end."""

import json
import subprocess
from pathlib import Path

import pytest

from fastdense.demo.__main__ import Size, demonstrate
from fastdense.demo.baseline import identifier_words, measure_bm25, stock_words
from fastdense.demo.commands import JAX, TORCH, command_line, show_and_run
from fastdense.demo.questions import QUESTIONS
from fastdense.demo.report import print_result
from fastdense.errors import UserError
from fastdense.retrieval.evaluation_set import EvaluationSet
from fastdense.retrieval.texts import Text


def test_a_shown_command_can_be_copied() -> None:
    flags = {"do_train": True, "train_dir": Path("a b/train.jsonl"), "measures": ["mrr@10", "recall@10"], "seed": 42}
    script = "python() { printf '%s\\n' \"$@\"; }\n" + command_line("fastdense.train", flags)
    words = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words == [
        *("-m", "fastdense.train", "--do_train", "--train_dir", "a b/train.jsonl"),
        *("--measures", "mrr@10", "recall@10", "--seed", "42"),
    ]


def test_a_shown_command_brings_its_environment() -> None:
    script = 'python() { echo "$XLA_FLAGS"; }\n' + command_line(JAX.train, {}, JAX.environment)
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"--xla_force_host_platform_device_count={JAX.devices}"


def test_a_failed_command_ends_the_demo(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"fastdense\.builtin_data ended with exit status 2"):
        show_and_run("fastdense.builtin_data", {"no_such_flag": True})
    assert capfd.readouterr().out.startswith("$ python -m fastdense.builtin_data")


def test_bm25_reads_identifiers_word_by_word() -> None:
    passages = [
        Text("a", "def getElementsByTagName(self)"),
        Text("b", "def close_all()", title="elementtree"),
        Text("c", "x"),
    ]
    queries = [Text("q1", "the elements of a tag"), Text("q2", "close them all")]
    texts = EvaluationSet(queries, passages, {"q1": {"a": 1}, "q2": {"b": 1}})
    assert measure_bm25(texts, ["mrr@10", "recall@10"], identifier_words) == {"mrr@10": 1.0, "recall@10": 1.0}
    assert stock_words(["def getElementsByTagName(self)"]) == [["def", "getelementsbytagname", "self"]]


@pytest.mark.parametrize(
    ("mrr", "recall", "verdict"),
    [
        (0.5, 0.5, "is better than BM25, identifiers split"),
        (0.3, 0.5, "is better in one measure and worse in the other than BM25, identifiers split"),
        (0.3, 0.3, "is not as good as BM25, identifiers split"),
    ],
)
def test_the_verdict_is_honest(mrr: float, recall: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {
        "before": {"mrr@10": 0.01, "recall@10": 0.01},
        "after": {"mrr@10": mrr, "recall@10": recall},
        "bm25": {"mrr@10": 0.2, "recall@10": 0.2},
        "bm25_words": {"mrr@10": 0.4, "recall@10": 0.4},
    }
    print_result(measured, queries=10, passages=20)
    output = capsys.readouterr().out
    assert verdict in output
    assert "is better than BM25 (bm25s as it comes)" in output


@pytest.mark.slow
def test_the_demo_runs_to_its_end_and_checks_its_own_claim(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    size = Size(sources=("json", "xml"), steps=5, eval_steps=5, gain=1000)
    with pytest.raises(UserError, match="1000 times better"):
        demonstrate(tmp_path / "demo", size, TORCH)
    output = capfd.readouterr().out
    for text in (*QUESTIONS, "before training", "after training", "BM25", str(tmp_path / "demo" / "model")):
        assert text in output
    assert output.count("$ python -m fastdense.train") == 1
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert result.keys() == {"before", "after", "bm25", "bm25_words"}
    for file in ("training_curve.png", "model/modules.json", "model/config.json", "after/run.txt"):
        assert (tmp_path / "demo" / file).is_file()
