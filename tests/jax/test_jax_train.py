"""Whole runs of ``fastdense.jax_train`` in this process, on eight simulated devices: they are the torch driver's."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import jax
import pytest
import safetensors.torch
import torch
import transformers

from fastdense.jax.trainer import JaxTrainer
from fastdense.modeling.load import load_retriever

Run = Callable[..., Path]
Log = Callable[[Path], list[dict[str, float]]]

CACHE = ("--grad_cache", "--gc_q_chunk_size", "1", "--gc_p_chunk_size", "2")


def values(lines: list[dict[str, float]], name: str) -> list[float]:
    return [line[name] for line in lines]


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(output / "model.safetensors")


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def assert_same_log(ours: list[dict[str, float]], theirs: list[dict[str, float]], rel: float = 1e-4) -> None:
    for name in ("loss", "grad_norm", "accuracy", "learning_rate", "epoch"):
        assert values(ours, name) == pytest.approx(values(theirs, name), rel=rel, abs=1e-7)


def test_fifty_steps_are_those_of_pytorch(tiny_run: Run, log_of: Log) -> None:
    """The same weights and rows: losses agree, and each reads what the other has written."""
    flags = ("--max_steps", "50", "--temperature", "0.3", "--normalize")
    ours, theirs = tiny_run(*flags), tiny_run(*flags, driver="train")
    assert len(log_of(ours)) == 50
    assert values(log_of(ours), "loss") == pytest.approx(values(log_of(theirs), "loss"), rel=1e-4)
    assert log_of(ours)[-1]["loss"] < 0.9 * log_of(ours)[0]["loss"]
    assert sorted(entry.name for entry in ours.iterdir()) == sorted(entry.name for entry in theirs.iterdir())
    for output in (ours, theirs):
        assert load_retriever(output).query_encoder.normalize
    again = tiny_run("--model_name_or_path", str(theirs), "--learning_rate", "0", "--max_steps", "1", name="again")
    assert_same_bits(again, theirs)


@pytest.mark.parametrize(
    "flags",
    [
        (*CACHE, "--gradient_accumulation_steps", "2", "--weight_decay", "0.1", "--max_grad_norm", "0.5"),
        ("--untie_encoder", "--add_pooler", "--projection_in_dim", "32", "--projection_out_dim", "8", "--pooling=mean"),
        ("--optim", "sgd", "--lr_scheduler_type", "cosine", "--warmup_steps", "1", "--label_smoothing_factor", "0.1"),
    ],
    ids=["cached, accumulated", "untied, projected", "sgd, smoothed"],
)
def test_flags_mean_the_same(tiny_run: Run, log_of: Log, flags: tuple[str, ...]) -> None:
    flags = (*flags, "--p_max_len", "16")  # all batches have one shape
    ours, theirs = tiny_run(*flags), tiny_run(*flags, driver="train")
    assert_same_log(log_of(ours), log_of(theirs))


@pytest.mark.parametrize("cache", [pytest.param((), marks=pytest.mark.slow), CACHE], ids=["plain", "grad_cache"])
def test_what_a_batch_lacks_is_padding(
    tiny_run: Run,
    log_of: Log,
    tiny_rows: list[dict[str, Any]],
    write_jsonl: Any,
    tmp_path: Path,
    cache: tuple[str, ...],
) -> None:
    """A short last batch, rows without negatives, and copies of positives: all as in the torch driver."""
    rows = [{**row, "positive_passages": tiny_rows[i // 2]["positive_passages"]} for i, row in enumerate(tiny_rows)]
    for row in rows[::5]:
        row["negative_passages"] = []
    path = write_jsonl(tmp_path / "lacking.jsonl", rows[:43])
    flags = ("--train_dir", str(path), "--dataloader_drop_last", "false", "--mask_duplicates", "--max_steps", "7")
    flags += ("--positive_passage_no_shuffle", "--negative_passage_no_shuffle", *cache)
    ours, theirs = tiny_run(*flags), tiny_run(*flags, driver="train")
    assert_same_log(log_of(ours), log_of(theirs))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="plain"),
        pytest.param((*CACHE, "--gradient_accumulation_steps", "2"), id="accumulated", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tiny_run: Run, shallow_bert_dir: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """... and nothing is said of flags that differ from the checkpoint's."""
    warnings: list[str] = []
    monkeypatch.setattr(transformers.trainer_utils.logger, "warning_once", warnings.append)
    flags = (*flags, "--model_name_or_path", str(shallow_bert_dir), "--save_strategy", "steps", "--save_steps", "3")
    flags = (*flags, "--p_max_len", "16")  # all batches have one shape
    whole = tiny_run(*flags, "--max_steps", "7", name="whole")
    checkpoint = str(whole / "checkpoint-3")
    resumed = tiny_run(*flags, "--max_steps", "7", "--resume_from_checkpoint", checkpoint, name="resumed")
    assert_same_bits(whole, resumed)
    assert not warnings


def test_what_a_finished_run_resumes_with(tiny_run: Run, log_of: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of an epoch. Of the flags that change, only the learning rate stays the checkpoint's."""
    flags = "--save_strategy steps --save_steps 2 --logging_steps 500 --lr_scheduler_type constant --warmup_ratio 0"
    flags = (*flags.split(), "--p_max_len", "16", "--resume_from_checkpoint", "auto")
    output = tiny_run(*flags)
    before = (output / "model.safetensors").read_bytes()
    tiny_run(*flags)
    assert (output / "model.safetensors").read_bytes() == before
    assert not (output / "checkpoint-5").exists()
    assert "nothing is left to train" in capsys.readouterr().err
    tiny_run(*flags, "--max_steps", "5", "--learning_rate", "0.5", "--weight_decay", "0.1")
    said = capsys.readouterr().err
    assert "--learning_rate 0.001 -> 0.5 (the checkpoint's value goes on)" in said
    assert "--weight_decay 0.0 -> 0.1\n" in said
    lines = log_of(output)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert set(values(lines, "learning_rate")) == {1e-3}
    mean = (2 * lines[0]["loss"] + 2 * lines[1]["loss"] + lines[2]["loss"]) / 5
    assert json.loads((output / "metrics.json").read_text())["train_loss"] == pytest.approx(mean)


@pytest.mark.slow
def test_bf16_follows_float32(tiny_run: Run, log_of: Log) -> None:
    exact = values(log_of(tiny_run(name="float32")), "loss")
    rounded = [
        values(log_of(tiny_run(*flags, name=flags[0])), "loss") for flags in (("--bf16",), ("--dtype=bfloat16",))
    ]
    assert rounded[0] == rounded[1] != exact
    assert rounded[0] == pytest.approx(exact, rel=0.05)


def test_nothing_is_compiled_after_the_first_epoch(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths vary from batch to batch, the programs do not."""
    programs: list[int] = []
    original = JaxTrainer.training_step

    def counting(trainer: JaxTrainer, *inputs: Any) -> torch.Tensor:
        result = original(trainer, *inputs)
        programs.append(trainer.gradient_step.compiled._cache_size())
        return result

    monkeypatch.setattr(JaxTrainer, "training_step", counting)
    tiny_run("--max_steps", "18", "--gradient_accumulation_steps", "2")
    assert programs[-1] == programs[11]
    assert programs[-1] <= 2 * 4  # first or later part of a step; two lengths of queries, two of passages
    assert len(programs) == 36


def test_the_log_says_what_matters_and_waits_for_nothing(tiny_run: Run, log_of: Log) -> None:
    every, third = tiny_run(name="every"), tiny_run("--logging_steps", "3", name="third")
    lines = log_of(every)
    assert {"loss", "accuracy", "learning_rate", "grad_norm", "examples_per_second"} <= lines[0].keys()
    assert values(log_of(third), "loss") == pytest.approx([sum(values(lines, "loss")[:3]) / 3, lines[3]["loss"]])
    for output in (every, third):
        summary = json.loads((output / "trainer_state.json").read_text())["log_history"][-1]
        assert summary["train_loss"] == pytest.approx(sum(values(lines, "loss")) / 4)


def test_held_out_sets_are_measured_as_by_pytorch(tiny_run: Run, eval_dir: Path, other_eval_dir: Path) -> None:
    flags = f"--eval_dir {eval_dir} {other_eval_dir} --eval_strategy steps --eval_steps 2 --save_strategy steps "
    flags += "--save_steps 2 --load_best_model_at_end --save_total_limit 1"
    measured = []
    for driver in ("jax_train", "train"):
        output = tiny_run(*flags.split(), driver=driver)
        state = json.loads((output / "trainer_state.json").read_text())
        lines = [line for line in state["log_history"] if "eval_mrr@10" in line]
        measured.append([line[f"eval_{name}mrr@10"] for line in lines for name in ("", "held-out_", "small_")])
        assert_same_bits(output, Path(state["best_model_checkpoint"]))
    assert len(measured[0]) == 2 * 3
    assert measured[0] == pytest.approx(measured[1], abs=1e-3)


def test_every_device_has_rows(tiny_run: Run, log_of: Log) -> None:
    assert jax.local_device_count() == 8
    lines = log_of(tiny_run("--temperature", "1e9", "--max_steps", "1"))
    assert lines[0]["loss"] == pytest.approx(math.log(24), rel=1e-4)  # all passages are equally likely


@pytest.mark.slow
def test_workers_see_the_same_rows(tiny_run: Run) -> None:
    alone = tiny_run(name="alone")
    assert_same_bits(alone, tiny_run("--dataloader_num_workers", "1", name="worker"))


def test_several_data_sets_give_the_batches_of_pytorch(
    tiny_run: Run, log_of: Log, tmp_path: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any
) -> None:
    sources = [str(write_jsonl(tmp_path / f"{n}.jsonl", tiny_rows[n::2])) for n in (0, 1)]
    flags = ("--train_dir", *sources, "--train_weights", "1", "2", "--max_steps", "2")
    found, expected = (values(log_of(tiny_run(*flags, driver=driver)), "loss") for driver in ("jax_train", "train"))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_stream_gives_the_batches_of_pytorch(
    tiny_run: Run, log_of: Log, tiny_rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_stream(*_: object) -> tuple[str, datasets.IterableDataset]:
        return "stream", datasets.Dataset.from_list(tiny_rows).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr("fastdense.training.assemble.find_stream", find_stream)
    flags = "--train_dir= --dataset_name org/name --streaming --streaming_buffer 20 --max_steps 2".split()
    found, expected = (values(log_of(tiny_run(*flags, driver=driver)), "loss") for driver in ("jax_train", "train"))
    assert found == pytest.approx(expected, rel=1e-3)
