"""Whole runs of ``fastdense.train`` in this process: what they log, what they leave, and which flags they honour."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fastdense.training.distinct import DescribingCollator
from fastdense.training.step import ContrastiveStep

Train = Callable[..., Path]
Log = Callable[[Path], list[dict[str, float]]]

CACHE = ("--grad_cache", "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "5")


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-6)


def test_every_line_of_the_log_says_what_matters(train_tiny: Train, log_of: Log) -> None:
    output = train_tiny()
    lines = log_of(output)
    assert len(lines) == 4
    for line in lines:
        assert {
            "loss",
            "accuracy",
            "learning_rate",
            "grad_norm",
            "examples_per_second",
            "padding",
            "data_wait",
        } <= line.keys()
        assert 0 <= line["accuracy"] <= 1
        assert 0 < line["padding"] < 1
        assert 0 < line["data_wait"] < 1
    summary = json.loads((output / "trainer_state.json").read_text())["log_history"][-1]
    assert summary["train_loss"] == pytest.approx(sum(line["loss"] for line in lines) / 4)


def test_sorted_chunks_have_less_padding_and_kept_graphs_change_no_bit(train_tiny: Train, log_of: Log) -> None:
    plain = log_of(train_tiny(name="plain"))
    chunks = ("--grad_cache", "--gc_tokens_per_chunk", "128")
    kept, twice = (train_tiny(*chunks, "--gc_keep_graph_gib", gib, name=gib) for gib in ("auto", "0"))
    for ours, theirs in zip(log_of(kept), plain, strict=True):
        assert ours["padding"] < theirs["padding"] / 2
    for name, weight in weights_of(kept).items():
        assert torch.equal(weight, weights_of(twice)[name])


@pytest.mark.parametrize("flags", [(), CACHE], ids=["plain", "grad_cache"])
def test_gradient_checkpointing_changes_nothing(train_tiny: Train, flags: tuple[str, ...]) -> None:
    plain = train_tiny(*flags, name="plain")
    assert_same_weights(train_tiny(*flags, "--gradient_checkpointing", name="checkpointing"), plain)


@pytest.mark.parametrize("flags", [(), CACHE], ids=["plain", "grad_cache"])
def test_bf16_follows_float32(train_tiny: Train, log_of: Log, flags: tuple[str, ...]) -> None:
    exact = [line["loss"] for line in log_of(train_tiny(*flags, name="float32"))]
    rounded = [line["loss"] for line in log_of(train_tiny(*flags, "--bf16", name="bf16"))]
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("flags", [(), CACHE], ids=["plain", "grad_cache"])
def test_the_loss_under_accumulation_is_the_mean(train_tiny: Train, log_of: Log, flags: tuple[str, ...]) -> None:
    """With the learning rate at 0 two accumulated batches are two steps, and their mean is what is logged."""
    fixed = ("--learning_rate", "0", *flags)
    steps = [line["loss"] for line in log_of(train_tiny(*fixed, name="steps"))]
    accumulated = train_tiny(*fixed, "--gradient_accumulation_steps", "2", "--max_steps", "2", name="accumulated")
    means = [(steps[0] + steps[1]) / 2, (steps[2] + steps[3]) / 2]
    assert [line["loss"] for line in log_of(accumulated)] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("flags", [(), CACHE], ids=["plain", "grad_cache"])
def test_max_grad_norm_is_honoured(train_tiny: Train, flags: tuple[str, ...]) -> None:
    free = train_tiny("--optim", "sgd", "--max_grad_norm", "0", "--max_steps", "2", *flags, name="free")
    held = train_tiny("--optim", "sgd", "--max_grad_norm", "1e-9", "--max_steps", "2", *flags, name="held")
    started = train_tiny("--optim", "sgd", "--learning_rate", "0", "--max_steps", "1", *flags, name="started")
    assert_same_weights(held, started)
    with pytest.raises(AssertionError):
        assert_same_weights(free, started)


def test_temperature_divides_the_scores(train_tiny: Train, log_of: Log) -> None:
    """At a huge temperature all 24 passages are equally likely."""
    lines = log_of(train_tiny("--temperature", "1e9", "--max_steps", "1"))
    assert lines[0]["loss"] == pytest.approx(torch.tensor(24.0).log().item(), rel=1e-4)


def test_temperature_is_the_same_under_grad_cache(
    train_tiny: Train, log_of: Log, tiny_bert_no_dropout_dir: Path
) -> None:
    # Plain SGD: Adam makes a full step out of the rounding of a gradient that is zero (the keys' bias).
    model = ("--model_name_or_path", str(tiny_bert_no_dropout_dir), "--optim", "sgd")
    flags = ("--temperature", "0.1", "--normalize", *model)
    plain, cached = train_tiny(*flags, name="plain"), train_tiny(*flags, *CACHE, name="cached")
    assert [line["loss"] for line in log_of(cached)] == pytest.approx(
        [line["loss"] for line in log_of(plain)], rel=1e-5
    )
    assert_same_weights(plain, cached)


def test_mask_duplicates_leaves_copies_of_the_positive_out(
    train_tiny: Train, log_of: Log, write_jsonl: Callable[..., Path], tmp_path: Path, tiny_bert_no_dropout_dir: Path
) -> None:
    """Eight rows with one and the same positive: without the mask it is everyone's negative, too."""
    row = {"query": "who built the bridge", "positive_passages": [{"docid": "1", "text": "the bridge was built"}]}
    rows = write_jsonl(tmp_path / "same.jsonl", [row] * 8)
    model = ("--model_name_or_path", str(tiny_bert_no_dropout_dir))
    flags = (*model, "--train_dir", str(rows), "--train_n_passages", "1", "--max_steps", "1")
    flags += ("--model_name_or_path", str(tiny_bert_no_dropout_dir))
    assert log_of(train_tiny(*flags, "--mask_duplicates", name="masked"))[0]["loss"] == pytest.approx(0, abs=1e-6)
    assert log_of(train_tiny(*flags, name="unmasked"))[0]["loss"] == pytest.approx(math.log(8), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), CACHE], ids=["plain", "grad_cache"])
def test_torch_compile_computes_the_same(
    train_tiny: Train, log_of: Log, tiny_bert_no_dropout_dir: Path, flags: tuple[str, ...]
) -> None:
    fixed = ("--model_name_or_path", str(tiny_bert_no_dropout_dir), "--max_steps", "2", *flags)
    compiled = log_of(train_tiny(*fixed, "--torch_compile", "--torch_compile_backend", "aot_eager", name="compiled"))
    plain = log_of(train_tiny(*fixed, name="plain"))
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], rel=1e-4)


def test_a_held_out_set_is_measured_and_chooses_the_best(train_tiny: Train, eval_dir: Path) -> None:
    flags = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --load_best_model_at_end"
    output = train_tiny("--eval_dir", str(eval_dir), *flags.split(), "--save_total_limit", "1", "--max_steps", "5")
    state = json.loads((output / "trainer_state.json").read_text())
    measured = {line["step"]: line["eval_mrr@10"] for line in state["log_history"] if "eval_mrr@10" in line}
    assert len(measured) == 5
    best = max(measured, key=measured.__getitem__)
    assert state["best_metric"] == measured[best]
    assert Path(state["best_model_checkpoint"]) == output / f"checkpoint-{best}"
    card = (output / "README.md").read_text()
    assert f"by the model of step {best}:" in card
    assert f"| mrr@10 | {measured[best]:.4f} |" in card
    assert torch.equal(
        *(weights_of(d)["embeddings.word_embeddings.weight"] for d in (output, output / f"checkpoint-{best}"))
    )


def test_evaluation_does_not_change_the_training(train_tiny: Train, eval_dir: Path) -> None:
    plain = train_tiny(name="plain")
    measured = train_tiny("--eval_dir", str(eval_dir), "--eval_strategy", "steps", "--eval_steps", "1", name="measured")
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight, weights_of(measured)[name])


def test_tensorboard_gets_the_log(train_tiny: Train) -> None:
    output = train_tiny("--report_to", "tensorboard")
    assert list(output.glob("runs/*/events.out.tfevents.*"))


def test_wandb_gets_the_log(train_tiny: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train_tiny("--report_to", "wandb")
    (run,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/accuracy" in run.read_bytes()


def test_trackio_gets_the_log(train_tiny: Train, tmp_path: Path) -> None:
    """In a process of its own: the library reads where to write when it is imported."""
    pytest.importorskip("trackio")
    record = train_tiny("--report_to", "none") / "run.yaml"
    command = [sys.executable, "-m", "fastdense.train", "--config", record, "--output_dir", tmp_path / "tracked"]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    subprocess.run([*command, "--report_to", "trackio", "--project", "ours"], env=environment, check=True)
    database = sqlite3.connect(tmp_path / "trackio" / "ours.db")
    logged = [bytes(metrics) for (metrics,) in database.execute("select metrics from metrics")]
    database.close()
    assert sum(b"train/accuracy" in line for line in logged) == 4


def test_several_workers_see_the_epochs(train_tiny: Train, tiny_bert_no_dropout_dir: Path) -> None:
    """Positives and negatives rotate by epoch in worker processes as they do in this one.

    Without dropout: persistent workers draw one seed for all epochs, and leave other random numbers to it.
    """
    flags = ("--max_steps", "14", "--model_name_or_path", str(tiny_bert_no_dropout_dir))
    alone = train_tiny(*flags, name="alone")
    workers = train_tiny(
        *flags, "--dataloader_num_workers", "2", "--dataloader_persistent_workers", "true", name="workers"
    )
    for name, weight in weights_of(alone).items():
        assert torch.equal(weight, weights_of(workers)[name])


def test_a_step_waits_for_less_than_a_fiftieth_of_its_time_if_workers_make_batches(
    train_tiny: Train, log_of: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch takes 0.2 s and a step 0.8 s: without workers a fifth of the time is waiting."""

    def slowly(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments)

        return slow

    monkeypatch.setattr(DescribingCollator, "__call__", slowly(DescribingCollator.__call__, 0.2))
    monkeypatch.setattr(ContrastiveStep, "__call__", slowly(ContrastiveStep.__call__, 0.8))
    lines = log_of(train_tiny("--dataloader_num_workers", "2"))
    assert min(line["data_wait"] for line in lines) < 0.02  # other work on the machine delays some of them


def test_emulated_bf16_is_warned_of(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    for flags, warnings in (((), 0), (("--bf16",), 1)):
        train_tiny("--max_steps", "1", "--overwrite_output_dir", *flags)
        assert capsys.readouterr().err.count("--bf16 is emulated on this CPU") == warnings
