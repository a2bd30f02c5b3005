"""Training on a stream of rows: order, resuming, the plan, and both drivers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from fastdense.training.step import ContrastiveStep

Train = Callable[..., Path]
FLAGS = ("--train_dir", "", "--dataset_name", "org/name", "--streaming", "--streaming_buffer", "20")


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch, tiny_rows: list[dict[str, Any]]) -> None:
    """48 rows in the place of the hub's."""

    def find_stream(name: str, cache_dir: str | None) -> tuple[str, datasets.IterableDataset]:
        return f"{name}, split train", datasets.Dataset.from_list(tiny_rows).to_iterable_dataset(num_shards=2)

    monkeypatch.setattr("fastdense.training.assemble.find_stream", find_stream)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch that a step takes."""
    seen: list[Any] = []
    call = ContrastiveStep.__call__

    def noting(self: ContrastiveStep, model: Any, batch: Any) -> Any:
        seen.append(batch)
        return call(self, model, batch)

    monkeypatch.setattr(ContrastiveStep, "__call__", noting)
    return seen


def queries(batch: Any) -> list[tuple[int, ...]]:
    return [tuple(row) for row in batch["query"]["input_ids"].tolist()]


def test_a_run_takes_all_rows_and_then_all_again(train_tiny: Train, batches: list[Any]) -> None:
    output = train_tiny(*FLAGS, "--max_steps", "12", "--gradient_accumulation_steps", "1")
    assert [len(batch["target"]) for batch in batches] == [8] * 12
    assert all(len(batch["passage_id"]) == 24 for batch in batches)
    first, second = ([query[:6] for batch in part for query in queries(batch)] for part in (batches[:6], batches[6:]))
    assert len(set(first)) == 48
    assert set(first) == set(second)
    assert first != second
    assert "| Data | org/name |" in (output / "README.md").read_text()
    told = yaml.safe_load((output / "run.yaml").read_text())
    assert (told["streaming"], told["streaming_buffer"], told["dataset_name"]) == (True, 20, ["org/name"])


def test_a_resumed_run_ends_with_the_same_bits(train_tiny: Train) -> None:
    flags = (*FLAGS, "--max_steps", "9", "--save_strategy", "steps", "--save_steps", "7")
    flags += ("--gradient_accumulation_steps", "2")
    whole = train_tiny(*flags, name="whole")
    resumed = train_tiny(*flags, "--resume_from_checkpoint", str(whole / "checkpoint-7"), name="resumed")
    expected, found = ((directory / "model.safetensors").read_bytes() for directory in (whole, resumed))
    assert found == expected


def test_the_plan_is_of_the_first_batch(train_tiny: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train_tiny(*FLAGS, "--dry_run")
    assert "batch: 8 queries and 24 passages a process" in capsys.readouterr().out
