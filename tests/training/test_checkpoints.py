"""Checkpoints: whole or absent, rotated, refused when damaged; directories are not mixed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from fastdense.errors import UserError
from fastdense.training.checkpoints import CheckpointingTrainer, find_checkpoint, whole_checkpoints

Train = Callable[..., Path]


def names(output: Path) -> list[str]:
    return [path.name for path in whole_checkpoints(output)]


def test_a_checkpoint_is_a_retriever_with_its_tokenizer(train_tiny: Train) -> None:
    from sentence_transformers import SentenceTransformer

    output = train_tiny("--save_strategy", "steps", "--save_steps", "2")
    assert names(output) == ["checkpoint-2", "checkpoint-4"]
    texts = ["the bridge", "who opened the window ?"]
    final = SentenceTransformer(str(output), device="cpu").encode(texts)
    last = SentenceTransformer(str(output / "checkpoint-4"), device="cpu").encode(texts)
    assert (final == last).all()


def test_old_checkpoints_go(train_tiny: Train) -> None:
    output = train_tiny("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2")
    assert names(output) == ["checkpoint-3", "checkpoint-4"]
    assert not [entry for entry in output.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize(
    "flags", [(), ("--grad_cache",), ("--gradient_accumulation_steps", "2"), ("--dataloader_num_workers", "2")]
)
def test_a_resumed_run_ends_with_the_same_bits(train_tiny: Train, flags: tuple[str, ...]) -> None:
    flags = (*flags, "--save_strategy", "steps", "--save_steps", "3", "--max_steps", "7")  # an epoch has 6 batches
    whole = train_tiny(*flags, name="whole")
    resumed = train_tiny(*flags, "--resume_from_checkpoint", str(whole / "checkpoint-3"), name="resumed")
    expected, found = (safetensors.torch.load_file(d / "model.safetensors") for d in (whole, resumed))
    for name, weight in expected.items():
        assert torch.equal(weight, found[name])


def test_auto_starts_where_there_is_nothing_and_resumes_where_there_is(train_tiny: Train, tmp_path: Path) -> None:
    flags = ("--save_strategy", "steps", "--save_steps", "2", "--resume_from_checkpoint", "auto")
    output = train_tiny(*flags)
    again = train_tiny(*flags, "--max_steps", "6")
    assert names(again) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    steps = [line["step"] for line in json.loads((output / "trainer_state.json").read_text())["log_history"]]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]
    assert find_checkpoint("auto", str(tmp_path / "nowhere")) is None
    with pytest.raises(UserError, match="there is no checkpoint"):
        find_checkpoint("true", str(tmp_path / "nowhere"))


def test_a_full_directory_is_refused_and_an_overwritten_one_keeps_nothing_old(train_tiny: Train) -> None:
    wide = ("--add_pooler", "--projection_in_dim", "32", "--projection_out_dim", "8", "--untie_encoder")
    output = train_tiny(*wide, "--save_strategy", "steps", "--save_steps", "1")
    assert (output / "pooler.pt").exists()
    with pytest.raises(UserError, match="--overwrite_output_dir"):
        train_tiny()
    train_tiny("--overwrite_output_dir")
    for old in ("pooler.pt", "query_model", "router_config.json", "checkpoint-1"):
        assert not (output / old).exists()


def test_a_failed_save_leaves_the_last_checkpoint(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saves = torch.save, []

    def fails_late(*args: object) -> None:
        saves.append(args)
        if len(saves) == 6:  # three files a checkpoint: this is the last of the second one
            raise OSError("disk full")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", fails_late)
    with pytest.raises(OSError, match="disk full"):
        train_tiny("--save_strategy", "steps", "--save_steps", "1")
    assert names(tmp_path / "output") == ["checkpoint-1"]
    monkeypatch.setattr(torch, "save", real)
    train_tiny("--save_strategy", "steps", "--save_steps", "1", "--resume_from_checkpoint", "true")
    assert names(tmp_path / "output")[-1] == "checkpoint-4"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda checkpoint: (checkpoint / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda checkpoint: (checkpoint / "optimizer.pt").write_bytes(b"PK"), "optimizer.pt is damaged"),
        (lambda checkpoint: (checkpoint / "trainer_state.json").write_text("{"), "trainer_state.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused(train_tiny: Train, damage: Callable[[Path], None], message: str) -> None:
    output = train_tiny("--save_strategy", "steps", "--save_steps", "4")
    damage(output / "checkpoint-4")
    with pytest.raises(UserError, match=message):
        find_checkpoint("true", str(output))


def test_a_rank_that_does_not_save_writes_nothing(tmp_path: Path) -> None:
    """Its library writes no weights, and what it published would replace the first rank's model."""
    trainer = object.__new__(CheckpointingTrainer)
    trainer.args = SimpleNamespace(should_save=False, output_dir=str(tmp_path / "output"))
    trainer._save()
    assert not (tmp_path / "output").exists()
