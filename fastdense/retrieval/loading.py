"""From arguments to the parts of an encoding run: encoder and tokenizer."""

import os
from typing import Any

import torch

from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder
from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval.arguments import EncodeArguments, EncoderArguments
from fastdense.retrieval.encode import TextTokenizer, autocast_dtype, check_fits

Q_MAX_LEN, P_MAX_LEN = 32, 128  # Tevatron v1's, for models that do not say theirs


def load_encoder(model: EncoderArguments, data: EncodeArguments) -> tuple[Encoder, TextTokenizer, torch.dtype | None]:
    """The encoder of queries or passages on its device, its tokenizer, and the dtype to autocast to."""
    check_single_process()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = autocast_dtype(model.fp16, model.bf16, device)
    encoder, tokenize = read_encoder(model, data)
    return encoder.to(device), tokenize, precision


def read_encoder(model: EncoderArguments, data: EncodeArguments) -> tuple[Encoder, TextTokenizer]:
    """The encoder of queries or passages in float32 on the CPU, and its tokenizer."""
    source: dict[str, Any] = {"cache_dir": model.cache_dir, "revision": model.model_revision}
    settings = read_settings(model.model_name_or_path, **source) or RetrieverSettings()
    retriever = load_retriever(
        model.model_name_or_path,
        normalize=model.normalize,
        pooling=model.pooling,
        trust_remote_code=model.trust_remote_code,
        attn_implementation=model.attn_implementation,
        **source,
    )
    tokenizer = load_tokenizer(
        model.model_name_or_path,
        tokenizer_name=model.tokenizer_name,
        trust_remote_code=model.trust_remote_code,
        **source,
    )
    tokenize = _text_tokenizer(tokenizer, data, settings)
    encoder = retriever.query_encoder if data.encode_is_qry else retriever.passage_encoder
    check_fits(encoder, tokenize)
    return encoder, tokenize


def _text_tokenizer(tokenizer: Any, data: EncodeArguments, settings: RetrieverSettings) -> TextTokenizer:
    """Flags win over what the model directory says."""
    if data.encode_is_qry:
        flag, default = "q_max_len", Q_MAX_LEN
        asked, saved = (data.q_max_len, data.query_prefix), (settings.q_max_len, settings.query_prefix)
    else:
        flag, default = "p_max_len", P_MAX_LEN
        asked, saved = (data.p_max_len, data.passage_prefix), (settings.p_max_len, settings.passage_prefix)
    max_length = asked[0] if asked[0] is not None else saved[0]
    separator = data.passage_field_separator
    return TextTokenizer(
        tokenizer,
        default if max_length is None else max_length,
        prefix=saved[1] if asked[1] is None else asked[1],
        separator=settings.passage_field_separator if separator is None else separator,
        flag=flag,
    )


def check_single_process() -> None:
    """Raise UserError under a launcher: all ranks would encode the same texts into the same file."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "encoding runs as one process: start one for each GPU, with its own CUDA_VISIBLE_DEVICES, "
            "--encode_num_shard and --encode_shard_index"
        )
