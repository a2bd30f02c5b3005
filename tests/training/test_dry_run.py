"""The plan that ``--dry_run`` prints, and that it does nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdense.training import dry_run
from fastdense.training.step import ContrastiveStep

Train = Callable[..., Path]


@pytest.fixture
def plan(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, str]]:
    """The plan's lines by their first words."""

    def run(*flags: str) -> dict[str, str]:
        output = train_tiny("--dry_run", *flags)
        assert not output.exists()
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == f"nothing was trained, and nothing was written to {output}"
        return dict(line.split(": ", 1) for line in lines[:-1])

    return run


def test_the_plan_of_a_cached_run(plan: Callable[..., dict[str, str]]) -> None:
    found = plan("--grad_cache", "--gc_tokens_per_chunk", "128")
    assert found["model"] == "BertModel, one encoder, cls pooling, 32 dimensions"
    assert found["parameters"] == "29,568, of them 28,512 trained"
    assert found["batch"].startswith("8 queries and 24 passages a process, 1 process(es), 1 batch(es)")
    assert found["negatives per query"].startswith("23;")
    shapes = [tuple(map(int, shape)) for shape in re.findall(r"(\d+) x (\d+)", found["chunks"])]
    assert all(rows * width <= 128 for rows, width in shapes)
    assert found["chunks"].startswith(f"{len(shapes)} (rows x tokens)")
    texts, copies = map(int, re.findall(r"\d+", found["encoded"]))
    assert texts + copies == 32
    assert sum(rows for rows, _ in shapes) == texts
    assert found["kept graphs"].startswith(f"{len(shapes)} of {len(shapes)} chunks run once")
    assert found["expected peak"].startswith("about ")


def test_the_plan_of_a_plain_run_and_of_other_settings(plan: Callable[..., dict[str, str]]) -> None:
    plain = plan("--untie_encoder")
    assert plain["chunks"].startswith("1 (rows x tokens): ")
    assert "kept graphs" not in plain
    nothing_kept = plan("--grad_cache", "--gc_keep_graph_gib", "0", "--gradient_checkpointing", "--bf16")
    assert nothing_kept["kept graphs"].startswith("0 of ")


def bytes_of(found: dict[str, str], line: str) -> int:
    return int(re.findall(r"(\d+) bytes", found[line])[-1])


def test_the_expected_peak_is_of_kept_graphs_or_of_a_chunk_that_runs_again(
    plan: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_size", lambda size: f"{size:.0f} bytes")
    cached = ("--grad_cache", "--gc_tokens_per_chunk", "128", "--gc_keep_graph_gib")
    nothing_kept, all_kept = plan(*cached, "0"), plan(*cached, "1")
    chunk, kept = bytes_of(nothing_kept, "activations"), bytes_of(all_kept, "kept graphs")
    assert kept > 2 * chunk > 0
    more = bytes_of(all_kept, "expected peak") - bytes_of(nothing_kept, "expected peak")
    assert more == pytest.approx(kept - chunk, abs=1)


def kib_a_token(found: dict[str, str]) -> float:
    return float(found["activations"].split()[0])


def test_activations_are_measured_as_training_will_compute_them(plan: Callable[..., dict[str, str]]) -> None:
    plain, checkpointed = kib_a_token(plan()), kib_a_token(plan("--gradient_checkpointing"))
    assert 0 < checkpointed < plain / 2


@pytest.mark.parametrize("flags", [(), ("--data_seed", "5"), ("--train_sampling_strategy", "sequential")])
def test_it_looks_at_the_batch_that_training_begins_with(
    train_tiny: Train, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    batches: list[dict[str, Any]] = []
    real = ContrastiveStep.__call__

    def recorded(step: ContrastiveStep, model: Any, batch: dict[str, Any]) -> Any:
        batches.append(batch)
        return real(step, model, batch)

    monkeypatch.setattr(ContrastiveStep, "__call__", recorded)
    train_tiny("--dry_run", *flags)
    train_tiny("--max_steps", "1", *flags)
    planned, trained = batches
    for side in ("query", "passage"):
        assert torch.equal(planned[side]["input_ids"], trained[side]["input_ids"])
