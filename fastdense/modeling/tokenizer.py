"""Load a model's tokenizer, ready to pad."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fastdense.errors import UserError
from fastdense.modeling.layout import TOWER_FOLDERS, join
from fastdense.modeling.reason import reason
from fastdense.modeling.source import ModelSource, open_source

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")


def load_tokenizer(
    name_or_path: str | Path,
    *,
    tokenizer_name: str | None = None,
    cache_dir: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The fast tokenizer of a model directory or hub model, or the one named ``tokenizer_name``.

    ``revision`` is the model's: a tokenizer named apart from it is taken from its own main branch.

    Decoders without a padding token get their end-of-text token for it; padded positions are masked anyway.

    Raises:
        UserError: there is none, it is damaged, or it has no token that could pad.
    """
    if tokenizer_name is not None:
        name_or_path, revision = tokenizer_name, None
    source = open_source(str(name_or_path), cache_dir, revision)
    folder = _folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.name,
            subfolder=folder,
            cache_dir=cache_dir,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged file
        raise UserError(f"cannot load a tokenizer from {source} ({reason(error)}): pass --tokenizer_name") from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer of {source} has neither a padding nor an end-of-text token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _folder(source: ModelSource) -> str:
    """Where the tokenizer lies: at the root, or with the query encoder in directories that other tools wrote."""
    for folder in ("", "0_Transformer", *(query for query, _ in TOWER_FOLDERS)):
        if any(source.file(join(folder, name)) for name in _TOKENIZER_FILES):
            return folder
    raise UserError(f"{source} has no tokenizer: pass --tokenizer_name")
