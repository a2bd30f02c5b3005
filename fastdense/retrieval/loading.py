"""From arguments to the parts of an encoding run: encoder and tokenizer."""

from hashlib import blake2b
from typing import Any

import torch

from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder
from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval.arguments import EncodeArguments, EncoderArguments
from fastdense.retrieval.encode import Encode, TextTokenizer, autocast_dtype, check_fits, truncated
from fastdense.retrieval.launch import Launch

Q_MAX_LEN, P_MAX_LEN = 32, 128  # Tevatron v1's, for models that do not say theirs


def load_encoder(model: EncoderArguments, data: EncodeArguments) -> tuple[Encoder, TextTokenizer, torch.dtype | None]:
    """The encoder of queries or passages on this process's device, its tokenizer, and the dtype to autocast to."""
    device = _device(Launch.of_environment())
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
    if model.truncate_dim is not None and model.truncate_dim > encoder.dimension:
        raise UserError(f"--truncate_dim is {model.truncate_dim}, but the vectors have {encoder.dimension} dimensions")
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


def as_asked(encode: Encode, model: EncoderArguments, encoder: Encoder) -> Encode:
    """``encode`` with what ``--truncate_dim`` keeps of a vector."""
    if model.truncate_dim is None:
        return encode
    return truncated(encode, model.truncate_dim, normalize=encoder.normalize)


def describe_encoder(
    encoder: Encoder, tokenize: TextTokenizer, precision: object, truncate_dim: int | None = None
) -> dict[str, str]:
    """All that the vector of a text depends on, by names for messages."""
    weights = blake2b(digest_size=16)
    for name, tensor in encoder.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "model": weights.hexdigest(),
        "pooling": encoder.pooling,
        "normalize": str(encoder.normalize),
        "tokenizer": type(tokenize.tokenizer).__name__,
        tokenize.flag: str(tokenize.max_length),
        "prefix": tokenize.prefix,
        "separator": tokenize.separator,
        "precision": str(precision or "float32"),
        **({} if truncate_dim is None else {"truncate_dim": str(truncate_dim)}),
    }


def _device(launch: Launch) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if launch.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are {torch.cuda.device_count()} GPUs but more processes on this machine: start torchrun with "
            f"--nproc_per_node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", launch.local_rank)
