"""Tiny models of the families that are trained, and what the tests of saving and loading share."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

TEXTS = ["amber whale", "the eagle found a granite summit in the forest of winter and named it", "who ?"]

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}

# A mapping of model type to what its configuration needs to be tiny.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "electra": {**SIZES, "embedding_size": 16},
    "mpnet": SIZES,
    "modernbert": {**SIZES, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3},
    "albert": {**SIZES, "embedding_size": 16},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 32},
}
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "llama": {**SIZES, "num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3},
    "qwen2": {**SIZES, "num_key_value_heads": 1, "bos_token_id": 2, "eos_token_id": 3},
}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path) -> Callable[[str], Path]:
    """``model_dir("roberta")``: a saved random model of that type with the tiny tokenizer. Read only."""
    made: dict[str, Path] = {"bert": tiny_bert_dir}

    def make(kind: str) -> Path:
        if kind not in made:
            directory = tmp_path_factory.mktemp(kind)
            # Real decoders' tokenizers name no token types; GPT-2 would take them for more tokens.
            names = {"model_input_names": ["input_ids", "attention_mask"]} if kind in DECODERS else {}
            tokenizer = AutoTokenizer.from_pretrained(tiny_bert_dir, **names)
            sizes = {**ENCODERS, **DECODERS}[kind]
            settings = {"vocab_size": len(tokenizer), "pad_token_id": 0, "initializer_range": 0.2, **sizes}
            config = AutoConfig.for_model(kind, max_position_embeddings=160, **settings)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                AutoModel.from_config(config).save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            made[kind] = directory
        return made[kind]

    return make


@pytest.fixture
def bert_copy(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """A tiny BERT directory that the test may damage."""
    return Path(shutil.copytree(tiny_bert_dir, tmp_path / "bert"))


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """``edit_json(path, change)`` rewrites a JSON file after ``change(content)``."""

    def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


@pytest.fixture
def batch() -> Callable[..., dict[str, torch.Tensor]]:
    """``batch(tokenizer, texts, max_length)`` tokenizes and pads as training does: no token type ids."""

    def make(tokenizer: Any, texts: list[str], max_length: int = 32) -> dict[str, torch.Tensor]:
        encoded = tokenizer(
            texts,
            truncation=True,
            max_length=max_length,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        return dict(encoded)

    return make


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Three texts of different lengths."""
    return TEXTS
