"""What resuming finds and leaves: nothing trained twice, no flag changed in silence, a record of all steps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastdense.training.resuming import flags_of_resumed

Train = Callable[..., Path]
CONSTANT = ("--lr_scheduler_type", "constant", "--warmup_ratio", "0")
AUTO = ("--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "auto")


def contents(directory: Path) -> dict[str, bytes]:
    """Of all files but tensorboard's."""
    files = [path for path in directory.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


# Of the 6 steps of an epoch: in its middle, at its end, and as a share of it.
ENDS = {
    "max_steps": ("--max_steps", "4"),
    "epoch": ("--max_steps", "-1", "--num_train_epochs", "1"),
    "half an epoch": ("--max_steps", "-1", "--num_train_epochs", "0.5"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_finished_run_stays_as_it_is(end: str, train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    output = train_tiny(*AUTO, *ENDS[end])
    before = contents(output)
    capsys.readouterr()
    train_tiny(*AUTO, *ENDS[end])
    assert contents(output) == before
    said = capsys.readouterr().err
    assert "nothing is left to train" in said
    assert "stays as it is" in said
    assert "other flags" not in said


def test_fewer_steps_than_are_trained_train_nothing(train_tiny: Train) -> None:
    output = train_tiny(*AUTO)
    before = contents(output)
    train_tiny(*AUTO, "--max_steps", "3")
    assert contents(output) == before


@pytest.fixture
def killed(train_tiny: Train, tmp_path: Path) -> Path:
    """All that there was when a run was killed behind its last step, in the directory of an older run."""
    whole, killed = train_tiny(*AUTO, name="whole"), tmp_path / "killed"
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(whole / name, killed / name)
    shutil.copy(whole / "checkpoint-2" / "trainer_state.json", killed)
    (killed / "model.safetensors").write_bytes(b"an older run's")
    return killed


def test_a_run_killed_behind_its_last_step_is_completed(killed: Path, train_tiny: Train) -> None:
    train_tiny(*AUTO, name="killed")
    whole = killed.parent / "whole"
    assert contents(killed).keys() == contents(whole).keys()
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    told = metrics(killed)
    assert (told["finished"], told["steps"]) == (True, 4)
    assert told["train_loss"] == pytest.approx(metrics(whole)["train_loss"])
    before = contents(killed)
    train_tiny(*AUTO, name="killed")
    assert contents(killed) == before


def test_a_killed_run_is_completed_with_its_best_checkpoint(killed: Path, train_tiny: Train, eval_dir: Path) -> None:
    path = killed / "checkpoint-4" / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "best_model_checkpoint": str(killed / "checkpoint-2")}))
    evaluated = ("--eval_dir", str(eval_dir), "--eval_strategy", "steps", "--eval_steps", "2")
    train_tiny(*AUTO, *evaluated, "--load_best_model_at_end", name="killed")
    final, best, last = (
        (killed / name / "model.safetensors").read_bytes() for name in (".", "checkpoint-2", "checkpoint-4")
    )
    assert final == best != last


def test_the_mark_of_a_finished_run_goes_when_training_goes_on(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed then behind its last step, an overwritten run would otherwise pass for finished with an older model."""
    output = train_tiny(*AUTO)
    with monkeypatch.context() as patch:
        patch.setattr("fastdense.training.run._leave", lambda *_: None)
        train_tiny("--overwrite_output_dir", "--learning_rate", "0.1", *AUTO[:4])
    old, new = ((output / name / "model.safetensors").read_bytes() for name in (".", "checkpoint-4"))
    assert old != new
    train_tiny(*AUTO, "--learning_rate", "0.1")
    assert (output / "model.safetensors").read_bytes() == new


def test_flags_that_change_are_told_and_recorded_as_what_happens(
    train_tiny: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    output = train_tiny(*AUTO, *CONSTANT)
    capsys.readouterr()
    changed = "--learning_rate 0.5 --max_steps 6 --logging_steps 2 --gradient_accumulation_steps 2"
    train_tiny(*AUTO, *CONSTANT, *changed.split())
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if "other flags" in line)
    assert "checkpoint-4 was made with: " in warning
    assert "--learning_rate 0.001 -> 0.5 (the checkpoint's value goes on)" in warning
    assert "--max_steps 4 -> 6" in warning
    assert "--gradient_accumulation_steps 1 -> 2" in warning
    assert "logging" not in warning
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert {line["learning_rate"] for line in history if "loss" in line} == {1e-3}
    for directory in (output, output / "checkpoint-6"):
        recorded = yaml.safe_load((directory / "run.yaml").read_text())
        assert (recorded["learning_rate"], recorded["max_steps"]) == (1e-3, 6)


def test_flags_are_compared_with_the_checkpoints_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    defaults = {"a": 1, "b": None, "c": [], "save_steps": 500, "kept": 0.5, "gone": 7}

    def resumed(flags: dict[str, Any], tell: bool = True) -> tuple[dict[str, Any], str]:
        caplog.clear()
        return flags_of_resumed(str(tmp_path), flags, defaults, ("kept",), tell=tell), caplog.text

    assert resumed({"a": 2}) == ({"a": 2}, ""), "an older checkpoint has no record"
    (tmp_path / "run.yaml").write_text("a: 2\nc: [x, y]\nb: text\nsave_steps: 3\nof_another_version: 1\n")
    flags, said = resumed({"a": 3, "kept": 0.25, "save_steps": 9})
    assert flags == {"a": 3, "save_steps": 9}, "the default goes on"
    for piece in ("--a 2 -> 3,", "--c x y -> (none)", "--b text -> (none)", "--kept 0.5 -> 0.25 (the checkpoint's"):
        assert piece in said
    assert "save_steps" not in said
    assert "another_version" not in said
    assert resumed({"a": 3}, tell=False)[1] == ""
    (tmp_path / "run.yaml").write_text("a: [")
    assert resumed({"a": 3}) == ({"a": 3}, "")


@pytest.mark.parametrize("logging", [("--logging_steps", "500"), ("--logging_steps", "3")])
def test_the_mean_loss_is_over_all_lives_of_a_run(logging: tuple[str, ...], train_tiny: Train) -> None:
    whole = train_tiny(*CONSTANT, "--max_steps", "7", name="whole")
    lives = [train_tiny(*AUTO, *CONSTANT, *logging, "--max_steps", steps) for steps in ("2", "4", "7")]
    told = metrics(lives[-1])
    assert told["train_loss"] == pytest.approx(metrics(whole)["train_loss"], rel=1e-6)
    assert f"Mean loss | {told['train_loss']:.4f}" in (lives[-1] / "README.md").read_text()


def test_a_mean_loss_that_nobody_logged_is_left_out(train_tiny: Train) -> None:
    output = train_tiny(*AUTO, "--logging_strategy", "no")
    assert metrics(output)["train_loss"] > 0
    train_tiny(*AUTO, "--logging_strategy", "no", "--max_steps", "5")
    assert "train_loss" not in metrics(output)
    assert "Mean loss" not in (output / "README.md").read_text()
