"""``fastdense.train`` does what Tevatron v1 does: every step's loss, learning rate and gradient norm; the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CACHE = ["--grad_cache", "--gc_q_chunk_size", "3", "--gc_p_chunk_size", "5"]

# What the oracle is told, and the same as flags.
ONE_PROCESS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "plain": ({}, []),
    "grad_cache": ({}, CACHE),
    "four_passages": ({"n_passages": 4}, ["--train_n_passages", "4"]),
    "no_negatives": ({"n_passages": 1}, ["--train_n_passages", "1"]),
    "untied": ({"untied": True}, ["--untie_encoder"]),
    "untied_grad_cache": ({"untied": True}, ["--untie_encoder", *CACHE]),
    "positive_no_shuffle": ({"positive_shuffle": False}, ["--positive_passage_no_shuffle"]),
    "negative_no_shuffle": ({"negative_shuffle": False}, ["--negative_passage_no_shuffle"]),
    "special_token_as_separator": ({"separator": "sep_token"}, ["--passage_field_separator", "sep_token"]),
    "text_as_separator": ({"separator": " / "}, ["--passage_field_separator", " / "]),
    "accumulation": ({"accumulation": 3}, ["--gradient_accumulation_steps", "3"]),
    # v1 itself forgets to divide here; this is the step that it means.
    "accumulation_grad_cache": ({"accumulation": 3}, ["--gradient_accumulation_steps", "3", *CACHE]),
    "another_seed": ({"seed": 7}, ["--seed", "7"]),
}


@pytest.fixture
def rows(tiny_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With batches of 4: three full ones an epoch and a rest that is dropped."""
    return tiny_rows[:14]


@pytest.fixture
def compare(
    tmp_path: Path, v1_run: Any, v1_train: Any, flags_of: Any, write_jsonl: Any, assert_same: Any, no_picture: None
) -> Any:
    """``compare(model, rows, run_fields, flags)`` trains both and compares them; returns the output directory."""
    from fastdense.train import main

    def train_both(model: Path, rows: list[dict[str, Any]], fields: dict[str, Any], flags: list[str]) -> Path:
        run = v1_run(model, rows, **fields)
        data = write_jsonl(tmp_path / "rows" / "train.jsonl", rows)
        main(flags_of(run, data, tmp_path / "output") + flags)
        assert_same(tmp_path / "output", v1_train(run))
        return tmp_path / "output"

    return train_both


@pytest.mark.parametrize("case", ONE_PROCESS)
def test_every_step_equals_v1(
    case: str, tiny_bert_no_dropout_dir: Path, rows: list[dict[str, Any]], compare: Callable[..., Path]
) -> None:
    compare(tiny_bert_no_dropout_dir, rows, *ONE_PROCESS[case])


def test_positives_and_negatives_rotate_over_epochs(
    tiny_bert_no_dropout_dir: Path, rows: list[dict[str, Any]], compare: Callable[..., Path]
) -> None:
    fields = {"epochs": 5, "batch_size": 8, "n_passages": 3}
    compare(tiny_bert_no_dropout_dir, rows, fields, ["--train_n_passages", "3"])


def test_rows_that_are_tokenized_already(
    tiny_bert_no_dropout_dir: Path, rows: list[dict[str, Any]], compare: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_bert_no_dropout_dir)

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tokenized = [
        {
            "query": ids(row["query"]),
            "positives": [ids(p["text"]) for p in row["positive_passages"]],
            "negatives": [ids(p["text"]) for p in row["negative_passages"]],
        }
        for row in rows
    ]
    compare(tiny_bert_no_dropout_dir, tokenized, {}, [])


@pytest.mark.parametrize("separator", [" ", "sep_token"])
def test_titles_missing_in_some_passages(
    separator: str, tiny_bert_no_dropout_dir: Path, rows: list[dict[str, Any]], compare: Callable[..., Path]
) -> None:
    """v1 ends with a TypeError here; the rule is its own, passage by passage."""
    for row in rows[::2]:
        del row["positive_passages"][0]["title"]
        del row["negative_passages"][1]["title"]
    flags = ["--passage_field_separator", separator]
    compare(tiny_bert_no_dropout_dir, rows, {"separator": separator}, flags)


@pytest.mark.parametrize("untied", [False, True])
def test_pooler_of_the_model_folder(
    untied: bool,
    tiny_bert_no_dropout_dir: Path,
    rows: list[dict[str, Any]],
    compare: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = shutil.copytree(tiny_bert_no_dropout_dir, tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    names = {"linear_q": 0, "linear_p": 1 if untied else 0}
    drawn = [(torch.randn(16, 32, generator=generator) / 4, torch.randn(16, generator=generator)) for _ in range(2)]
    pooler = {f"{name}.weight": drawn[i][0] for name, i in names.items()}
    pooler |= {f"{name}.bias": drawn[i][1] for name, i in names.items()}
    torch.save(pooler, model / "pooler.pt")
    (model / "pooler_config.json").write_text(json.dumps({"input_dim": 32, "output_dim": 16, "tied": not untied}))
    flags = ["--add_pooler", "--projection_in_dim", "32", "--projection_out_dim", "16"]
    fields = {"untied": untied, "pooler": model / "pooler.pt"}
    compare(model, rows, fields, [*flags, "--untie_encoder"] if untied else flags)


def test_new_pooler(
    tiny_bert_no_dropout_dir: Path,
    rows: list[dict[str, Any]],
    compare: Callable[..., Path],
    flags_of: Any,
    v1_run: Any,
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    """A first step has learning rate 0: what it saves is what the training starts from."""
    from fastdense.train import main

    flags = ["--add_pooler", "--projection_in_dim", "32", "--projection_out_dim", "16"]
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    main([*flags_of(v1_run(tiny_bert_no_dropout_dir, rows), data, tmp_path / "start"), *flags, "--max_steps", "1"])
    fields = {"pooler": tmp_path / "start" / "pooler.pt"}
    compare(tiny_bert_no_dropout_dir, rows, fields, flags)
