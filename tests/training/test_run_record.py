"""What a run leaves beside the model: run.yaml repeats it, the rest tells where and how it went."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml
from matplotlib.axes import Axes

from fastdense import environment
from fastdense.training.curve import draw_training_curve
from fastdense.training.run_record import RunRecord, summary

Train = Callable[..., Path]
PNG = b"\x89PNG"


@pytest.fixture
def no_picture() -> None:
    """Here it is drawn."""


def test_the_run_is_told_and_run_yaml_repeats_it_bit_for_bit(train_tiny: Train, eval_dir: Path, tmp_path: Path) -> None:
    flags = (
        *(
            "--grad_cache",
            "--gc_q_chunk_size",
            "4",
            "--warmup_ratio",
            "0.3",
            "--normalize",
            "--report_to",
            "tensorboard",
        ),
        *("--eval_dir", str(eval_dir), "--eval_strategy", "steps", "--eval_steps", "2", "--overwrite_output_dir"),
        *("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-5}'),
    )
    first = train_tiny(*flags)
    given = yaml.safe_load((first / "run.yaml").read_text())
    assert given["gc_q_chunk_size"] == 4, "given, though it is the documented default"
    assert (
        not {"gc_p_chunk_size", "seed", "include_num_input_tokens_seen", "use_cpu", "hub_token", "overwrite_output_dir"}
        & given.keys()
    )

    from fastdense.train import main

    main(["--config", str(first / "run.yaml"), "--output_dir", str(tmp_path / "again")])
    assert yaml.safe_load((tmp_path / "again" / "run.yaml").read_text()) == {
        **given,
        "output_dir": str(tmp_path / "again"),
    }
    weights = [safetensors.torch.load_file(d / "model.safetensors") for d in (first, tmp_path / "again")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())

    told = json.loads((first / "metrics.json").read_text())
    history = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert told["finished"] is True
    assert told["steps"] == 4
    assert told["loss"] == [line for line in history if "loss" in line][-1]["loss"]
    assert told["train_loss"] == history[-1]["train_loss"]
    assert told["evaluation"]["step"] == 4
    assert {"mrr@10", "recall@100"} <= told["evaluation"].keys()
    assert 0 < told["padding"] < 1
    assert min(told["examples_per_second"], told["duration_seconds"]) > 0
    assert (first / "training_curve.png").read_bytes().startswith(PNG)
    facts = json.loads((first / "environment.json").read_text())
    # without +cu128 where PyPI built it
    assert facts["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    assert facts["processes"] == 1
    assert "hf_secret" not in (first / "environment.json").read_text()


def test_without_matplotlib_a_sentence_stands_in_for_the_picture(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastdense.training.run_record.find_spec", lambda _: None)
    output = train_tiny("--max_steps", "1")
    assert capsys.readouterr().err.count("no training_curve.png: matplotlib is not installed") == 1
    assert not (output / "training_curve.png").exists()
    assert (output / "metrics.json").is_file()


def test_a_running_training_is_followed_by_its_first_process_only(tmp_path: Path) -> None:
    args = SimpleNamespace(output_dir=str(tmp_path), world_size=1)
    history = [{"step": 1, "loss": float("nan")}]
    state = SimpleNamespace(is_world_process_zero=False, best_model_checkpoint=None, log_history=history)
    record = RunRecord({"seed": 7})
    record.on_train_begin(args, state, None)
    record.on_train_end(args, state, None)
    assert not list(tmp_path.iterdir())
    state.is_world_process_zero = True
    record.on_train_begin(args, state, None)
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "environment.json"}
    record.on_log(args, state, None)
    assert not (tmp_path / "metrics.json").exists(), "too early for what it costs"
    record._drawn -= 3600
    record.on_log(args, state, None)
    told = json.loads((tmp_path / "metrics.json").read_text())
    assert (told["finished"], told["loss"]) == (False, "nan")


def test_the_summary_leaves_out_what_was_not_logged() -> None:
    assert summary([], 1.0) == {"duration_seconds": 1.0}
    history = [
        {"step": 1, "loss": 3.0, "examples_per_second": 1.0},
        {"step": 2, "loss": 2.0, "examples_per_second": 9.0, "padding": 0.5},
        {"step": 2, "eval_mrr@10": 0.5, "eval_runtime": 1.0},
        {"step": 3, "loss": 1.0, "examples_per_second": 2.0},
    ]
    assert summary(history, 2.0) == {
        "steps": 3,
        "loss": 1.0,
        "examples_per_second": 2.0,
        "padding": 0.5,
        "evaluation": {"step": 2, "mrr@10": 0.5, "runtime": 1.0},
        "duration_seconds": 2.0,
    }


def test_a_curve_without_a_loss_is_not_drawn(tmp_path: Path) -> None:
    draw_training_curve([{"step": 1, "eval_mrr@10": 0.1}], tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
    draw_training_curve([{"step": 1, "loss": float("nan")}], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(("points", "marker"), [(1, "o"), (2, "")])
def test_a_curve_of_one_point_is_seen(
    points: int, marker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    markers, plot = [], Axes.plot

    def note(self: Axes, *data: object, **style: object) -> object:
        markers.append(style["marker"])
        return plot(self, *data, **style)

    monkeypatch.setattr(Axes, "plot", note)
    draw_training_curve([{"step": step, "loss": 1.0} for step in range(points)], tmp_path / "curve.png")
    assert markers == [marker]


def test_a_run_shorter_than_the_logging_steps_has_a_loss_and_a_curve(train_tiny: Train) -> None:
    output = train_tiny("--logging_steps", "500", "--max_steps", "2")
    assert json.loads((output / "metrics.json").read_text())["loss"] > 0
    assert (output / "training_curve.png").read_bytes().startswith(PNG)


def test_no_secret_is_in_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", "-m", "x", "--hub_token", "s1", "--hub-token=s2", "a b"])
    assert environment.command() == "python -m x --hub_token ... --hub-token=... 'a b'"


def test_the_commit_of_the_work_tree_is_told(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=n", "-c", "user.email=e")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True, text=True).stdout

    assert environment.git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").touch()
    git("add", "file")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert environment.git_commit(tmp_path) == commit
    (tmp_path / "file").write_text("changed")
    assert environment.git_commit(tmp_path) == f"{commit}+changes"
