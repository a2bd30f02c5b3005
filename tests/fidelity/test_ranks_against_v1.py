"""Two ranks do what two ranks of Tevatron v1 do, with shared negatives and without."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CACHE = ["--grad_cache", "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "5"]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "shared": ({"x_device": True}, ["--negatives_x_device"]),
    "shared_grad_cache": ({"x_device": True}, ["--negatives_x_device", *CACHE]),
    "shared_untied_accumulation": (
        {"x_device": True, "untied": True, "accumulation": 2},
        ["--negatives_x_device", "--untie_encoder", "--gradient_accumulation_steps", "2"],
    ),
    "own": ({}, []),
    "own_grad_cache": ({}, CACHE),
}


def train_on_two_ranks(folder: Path, commands: list[list[str]]) -> None:
    """One start of two processes trains them all: starting costs more than training."""
    (folder / "commands.json").write_text(json.dumps(commands))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("train_in_turn.py")
    result = subprocess.run([*torchrun, script, folder / "commands.json"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.distributed
@pytest.mark.slow
def test_every_step_of_two_ranks_equals_v1(
    tiny_bert_no_dropout_dir: Path,
    tiny_rows: list[dict[str, Any]],
    write_jsonl: Any,
    v1_run: Any,
    v1_train: Any,
    flags_of: Any,
    assert_same: Any,
    tmp_path: Path,
    subtests: pytest.Subtests,
) -> None:
    rows = tiny_rows[:14]  # with batches of 3 on 2 ranks: two steps an epoch, and a rest
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    sizes = {"world_size": 2, "epochs": 3, "batch_size": 3}
    runs = {name: v1_run(tiny_bert_no_dropout_dir, rows, **sizes, **fields) for name, (fields, _) in CASES.items()}
    commands = [[*flags_of(run, data, tmp_path / name), *CASES[name][1]] for name, run in runs.items()]
    train_on_two_ranks(tmp_path, commands)
    for name, run in runs.items():
        with subtests.test(name):
            assert_same(tmp_path / name, v1_train(run))
