"""Loading rows the way a training run does, with a cache of the test's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fastdense.data.training_rows import load_training_rows


@pytest.fixture(scope="session")
def tokenizer(tiny_bert_dir: Path) -> PreTrainedTokenizerBase:
    """The tiny BERT tokenizer. Read only."""
    return AutoTokenizer.from_pretrained(tiny_bert_dir)


@pytest.fixture
def load(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., datasets.Dataset]:
    """``load(path, **settings)``: :func:`load_training_rows` in one process, cached below ``tmp_path/cache``."""

    def load_rows(path: Any, **settings: Any) -> datasets.Dataset:
        settings = {"tokenizer": tokenizer, "num_proc": 1, "cache_dir": str(tmp_path / "cache")} | settings
        return load_training_rows(train_dir=path, **settings)

    return load_rows


@pytest.fixture
def load_row(load: Callable[..., datasets.Dataset], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """``load_row(row, **settings)``: the tokenized form of a file's only row."""

    def load_one(row: dict[str, Any], **settings: Any) -> dict[str, Any]:
        path = tmp_path / "row.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        return load(path, **settings)[0]

    return load_one


@pytest.fixture
def ids(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """``ids(text)``: the text's token ids without special tokens."""
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
