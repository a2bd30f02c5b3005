"""The examples run, in tiny form and without a network."""

import gzip
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn

EXAMPLES = Path(__file__).parents[1] / "examples"

Rows = list[dict[str, Any]]
TINY = "--max_steps 2 --per_device_train_batch_size 8 --disable_tqdm true --dataset_proc_num 1".split()


def run(script: str, flags: list[str], base: Mapping[str, str] = os.environ, **settings: str) -> str:
    """The output of a script whose ``python`` is this one, in the environment ``base`` with ``settings``."""
    environment = {**base, **settings, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    finished = subprocess.run([EXAMPLES / script, *flags], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_every_example_is_run_by_a_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if path.is_file() and f'"{path.name}"' not in tests] == []


@pytest.mark.filterwarnings("default")  # another library's trainer
def test_drop_in(tiny_bert_dir: Path, tiny_rows: Rows, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    pairs = [{"anchor": row["query"], "positive": row["positive_passages"][0]["text"]} for row in tiny_rows]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    main = runpy.run_path(str(EXAMPLES / "drop_in.py"))["main"]
    main(str(tiny_bert_dir), str(path), str(tmp_path / "trained"), 1)
    assert (tmp_path / "trained" / "modules.json").is_file()


@pytest.mark.slow
def test_own_rows(
    tiny_bert_dir: Path, tiny_rows: Rows, write_jsonl: Callable[..., Path], eval_dir: Path, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)
    out = tmp_path / "trained"
    flags = [*TINY, "--use_cpu", "--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "2"]
    said = run(
        "own_rows.sh",
        [*flags, "--save_steps", "2"],
        MODEL=str(tiny_bert_dir),
        ROWS=str(rows),
        HELD_OUT=str(eval_dir),
        OUT=str(out),
    )
    assert "mrr@10" in said.lower()
    assert (out / "run.txt").is_file()


@pytest.mark.slow
def test_natural_questions(seed_hub: HubStandIn, tiny_rows: Rows, tmp_path: Path) -> None:
    """All of the recipe, with the names of the hub that stand in it."""
    passages = [passage for row in tiny_rows for passage in row["positive_passages"]]
    (tmp_path / "corpus").mkdir()
    for name, rows in (("wikipedia-nq/nq-test", tiny_rows), ("corpus/corpus", passages)):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    seed_hub.add_dataset("Tevatron/wikipedia-nq", tmp_path / "wikipedia-nq")
    seed_hub.add_dataset("Tevatron/wikipedia-nq-corpus", tmp_path / "corpus")
    said = run("nq.sh", TINY, seed_hub.environment(tmp_path / "home"), OUT=str(tmp_path / "trained"))
    found = dict(re.findall(r"top-(\d+) accuracy: (\S+)", said))
    assert found.keys() == {"20", "100"}
    assert 0 < float(found["20"]) <= 1
    assert found["100"] == "1.0000"  # every passage is looked at, and every answer stands in one


def test_answers_are_words_that_follow_one_another(
    write_jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = [{"docid": str(i), "title": "", "text": "nothing"} for i in range(25)]
    corpus[0]["text"], corpus[21]["text"] = "Marching in the sun", "It was caf\u00e9-Royal, in 1901."
    questions = [
        {"query_id": "word", "answers": ["arch", "March"]},  # never a part of a word
        {"query_id": "late", "answers": ["1902", "CAFE\u0301-royal"]},
        {"query_id": "early", "answers": ["the sun"]},
        {"query_id": "lost", "answers": ["sun"]},
    ]
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name, rows in (("q", questions), ("c", corpus))]
    ranking = tmp_path / "run.txt"
    lines = (f"{query}\t{i}\t{-i}.0\n" for query in ("word", "late", "early") for i in range(25))
    ranking.write_text("".join(lines))
    runpy.run_path(str(EXAMPLES / "nq_answers.py"))["main"](str(ranking), *map(str, paths))
    assert capsys.readouterr().out == "top-20 accuracy: 0.2500\ntop-100 accuracy: 0.5000\n"


@pytest.mark.filterwarnings("default")  # another library's
@pytest.mark.parametrize("words", [[], ["a", "b", "c", "d"]])
@pytest.mark.parametrize(
    ("script", "usage"),
    [
        ("drop_in.py", "usage: python examples/drop_in.py MODEL PAIRS.jsonl OUTPUT [STEPS]"),
        ("nq_answers.py", "usage: python examples/nq_answers.py RANKING QUESTIONS CORPUS"),
    ],
)
def test_without_its_arguments_a_script_says_how_it_is_used(
    script: str, usage: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_alone(script, words, monkeypatch) == 2
    assert capsys.readouterr().err.removeprefix("error: ") == f"{usage}\n"


@pytest.mark.parametrize(
    ("ranking", "question", "passage", "message"),
    [
        (None, {}, {}, "there is no ranking at"),
        ("q\tp\t1.0\n", {"query_id": "q"}, {}, "q.jsonl, line 1: the row has no answers; query_id, answers are needed"),
        ("q\tp\t1.0\n", {}, {"text": "x"}, "c.jsonl, line 1: the row has no docid; docid, text are needed"),
        ("q\tz\t1.0\n", {}, {"docid": "p", "text": "x"}, "c.jsonl has no passage 'z', which"),
    ],
)
def test_what_the_answers_lack_is_said(
    ranking: str | None,
    question: dict[str, Any],
    passage: dict[str, Any],
    message: str,
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    question = question or {"query_id": "q", "answers": ["x"]}
    passage = passage or {"docid": "p", "text": "x"}
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [row]) for name, row in (("q", question), ("c", passage))]
    if ranking is not None:
        (tmp_path / "run.txt").write_text(ranking)
    assert run_alone("nq_answers.py", [str(tmp_path / "run.txt"), *map(str, paths)], monkeypatch) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")


def run_alone(script: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """The exit status of a Python script, run in this process."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return end.value.code


@pytest.mark.slow
def test_tpu(tiny_bert_dir: Path, tiny_rows: Rows, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)
    flags = ["--dataset_name", "json", "--train_dir", str(rows), *TINY]
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run("tpu.sh", flags, MODEL=str(tiny_bert_dir), OUT=str(tmp_path / "trained"), **devices)
    assert (tmp_path / "trained" / "modules.json").is_file()
