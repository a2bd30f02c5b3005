"""The examples run, in tiny form and without a network."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

Rows = list[dict[str, Any]]
TINY = "--max_steps 2 --per_device_train_batch_size 8 --disable_tqdm true --dataset_proc_num 1".split()


def run(script: str, flags: list[str], **settings: str) -> str:
    """The output of a script whose ``python`` is this one."""
    environment = {**os.environ, **settings, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
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
@pytest.mark.parametrize("script", ["nq.sh", "tpu.sh"])
def test_natural_questions(
    script: str, tiny_bert_dir: Path, tiny_rows: Rows, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)
    flags = ["--dataset_name", "json", "--train_dir", str(rows), *TINY]
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run(script, flags, MODEL=str(tiny_bert_dir), OUT=str(tmp_path / "trained"), **devices)
    assert (tmp_path / "trained" / "modules.json").is_file()
