"""Training runs with ``--lora``."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

Train = Callable[..., Path]
LORA = ("--lora", "--lora_dropout", "0.1", "--lora_r", "4")
CHUNKS = ("--grad_cache", "--gc_tokens_per_chunk", "128")


def load(directory: Path, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(directory / name)


def test_a_resumed_run_ends_with_the_same_bits(train_tiny: Train) -> None:
    flags = (*LORA, *CHUNKS, "--save_strategy", "steps", "--save_steps", "3", "--max_steps", "5")
    whole = train_tiny(*flags, name="whole")
    resumed = train_tiny(*flags, "--resume_from_checkpoint", str(whole / "checkpoint-3"), name="resumed")
    for name in ("lora.safetensors", "model.safetensors"):
        expected, found = load(whole, name), load(resumed, name)
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_the_directory_loads_everywhere_and_holds_the_updates(train_tiny: Train, tiny_bert_dir: Path) -> None:
    from sentence_transformers import SentenceTransformer

    output = train_tiny(*LORA, "--learning_rate", "0.1")
    before, after = load(tiny_bert_dir, "model.safetensors"), load(output, "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("query.weight", "value.weight"))}
    assert SentenceTransformer(str(output), device="cpu").encode("the bridge").shape == (32,)
    assert not list(train_tiny("--overwrite_output_dir").glob("lora*"))


def test_the_best_adapters_are_loaded_at_the_end(train_tiny: Train, eval_dir: Path) -> None:
    flags = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --load_best_model_at_end"
    output = train_tiny(*LORA, "--eval_dir", str(eval_dir), *flags.split(), "--save_total_limit", "1")
    kept = [load(checkpoint, "lora.safetensors") for checkpoint in output.glob("checkpoint-*")]
    final = load(output, "lora.safetensors")
    assert any(all(torch.equal(one[name], final[name]) for name in final) for one in kept)


@pytest.mark.parametrize(
    "more", [(), ("--gradient_checkpointing",), ("--bf16",)], ids=["plain", "checkpointing", "bf16"]
)
def test_kept_graphs_change_no_bit(train_tiny: Train, more: tuple[str, ...]) -> None:
    kept, twice = (train_tiny(*LORA, *CHUNKS, *more, "--gc_keep_graph_gib", gib, name=gib) for gib in ("auto", "0"))
    expected, found = load(kept, "lora.safetensors"), load(twice, "lora.safetensors")
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
