"""The log covers every step, however rarely it is to be written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdense.training.whole_log import mean_loss

Train = Callable[..., Path]


def logged(output: Path) -> list[int]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [line["step"] for line in history if "loss" in line]


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ("--logging_steps 500", [4]),
        ("--logging_steps 3 --save_strategy steps --save_steps 2", [2, 3, 4]),
        ("--logging_strategy epoch --max_steps 8", [6, 8]),  # an epoch has 6
        ("--logging_strategy no", []),
    ],
)
def test_a_line_for_every_checkpoint_and_the_end(flags: str, steps: list[int], train_tiny: Train) -> None:
    output = train_tiny(*flags.split())
    assert logged(output) == steps
    told = json.loads((output / "metrics.json").read_text())
    assert ("loss" in told) == bool(steps)
    assert told["train_loss"] > 0


def test_the_mean_loss_counts_steps() -> None:
    lines = [{"step": 3, "loss": 2.0}, {"step": 3, "eval_loss": 9.0}, {"step": 4, "loss": 6.0}]
    assert mean_loss(lines, 0, 4) == 3.0
    assert mean_loss(lines, 3, 4) == 3.0
    assert mean_loss(lines, 2, 4) is None, "the steps before the checkpoint of step 2 were not all logged"
    assert mean_loss(lines, 0, 5) is None, "the last one was not"
    assert mean_loss([], 0, 0) is None
