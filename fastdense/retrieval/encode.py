"""Texts to vectors with a trained encoder."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fastdense.data.collation import pad, pad_token_id
from fastdense.data.tokenization import SpecialTokens, passage_text, resolve_separator, token_ids
from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder
from fastdense.retrieval.texts import Text

Encode = Callable[..., NDArray[np.float32]]
"""``encode(texts, on_batch=...)``: vectors [len(texts), D]; ``on_batch`` is told how many texts are done."""

WINDOW = 16384  # texts that are tokenized and sorted by length at a time


class TextTokenizer:
    """What a text becomes for the model: prefix + title + separator + text, cut to ``max_length`` with special tokens.

    Args:
        max_length: tokens of a text at most, special tokens included.
        prefix: put before every text.
        separator: between title and text; the name of one of the tokenizer's tokens (``sep_token``) stands for it.
        flag: the flag that ``max_length`` comes from, for messages.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        prefix: str = "",
        separator: str = " ",
        flag: str = "p_max_len",
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.flag = flag
        self.prefix = prefix
        self.separator = resolve_separator(tokenizer, separator)
        self.special_tokens = SpecialTokens.of(tokenizer)
        self.special_tokens.check_length(max_length, flag)
        self.pad_id = pad_token_id(tokenizer)

    def __call__(self, texts: Sequence[Text]) -> list[list[int]]:
        """Token ids of every text, special tokens included."""
        strings = [self._string(text) for text in texts if text.token_ids is None]
        if self.prefix and len(strings) < len(texts):
            raise UserError("a prefix cannot be put before token ids: leave it out, or give the rows as text")
        tokenized = iter(token_ids(self.tokenizer, strings))
        own = (next(tokenized) if text.token_ids is None else self._checked(text) for text in texts)
        framed = [self.special_tokens.frame(ids, self.max_length) for ids in own]
        for text, ids in zip(texts, framed, strict=True):
            if not ids:
                raise UserError(f"the text {text.text_id!r} is empty: it has no token to encode")
        return framed

    def _string(self, text: Text) -> str:
        return self.prefix + passage_text(text.title, text.text, self.separator)

    def _checked(self, text: Text) -> list[int]:
        assert text.token_ids is not None
        if text.token_ids and max(text.token_ids) >= len(self.tokenizer):
            raise UserError(
                f"the text {text.text_id!r} holds the token id {max(text.token_ids)}, but the tokenizer has only "
                f"{len(self.tokenizer)} tokens; tokenize the rows with the model's own tokenizer"
            )
        return text.token_ids


def encode_texts(
    encoder: Encoder,
    tokenize: TextTokenizer,
    texts: Sequence[Text],
    *,
    batch_size: int = 64,
    precision: torch.dtype | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Encode ``texts`` on the encoder's device, without dropout and gradients; the encoder's mode is restored.

    Args:
        batch_size: texts at a time; texts of similar length share a batch.
        precision: autocast to this dtype; None computes in the encoder's own.
        on_batch: called with the number of texts done after each batch.

    Returns:
        Vectors float32 [len(texts), D], in the order of ``texts``.

    Raises:
        UserError: a text without tokens, a token id the tokenizer does not have, or a vector that is not finite.
    """
    device = next(encoder.parameters()).device

    def encode(sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        inputs = pad(sequences, tokenize.pad_id)
        return encoder({name: tensor.to(device) for name, tensor in inputs.items()}).float().cpu().numpy()

    autocast = torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
    with _evaluating(encoder), torch.no_grad(), autocast:
        return encode_in_batches(
            encode,
            tokenize,
            texts,
            dimension=encoder.dimension,
            batch_size=batch_size,
            on_batch=on_batch,
            overflows=precision == torch.float16,
        )


def encode_in_batches(
    encode: Callable[[Sequence[Sequence[int]]], NDArray[np.float32]],
    tokenize: TextTokenizer,
    texts: Sequence[Text],
    *,
    dimension: int,
    batch_size: int,
    on_batch: Callable[[int], object] | None = None,
    overflows: bool = False,
) -> NDArray[np.float32]:
    """What :func:`encode_texts` does around a model, which may be any that encodes batches of token ids.

    Args:
        encode: at most ``batch_size`` sequences of token ids, special tokens included, to their vectors [n, D].
        dimension: D.
        overflows: the model computes in float16, where vectors that are not finite are no sign of damage.

    Returns, raises: as :func:`encode_texts`.
    """
    vectors = np.empty((len(texts), dimension), dtype=np.float32)
    for start in range(0, len(texts), WINDOW):
        window = texts[start : start + WINDOW]
        sequences = tokenize(window)
        for rows in _batches(sequences, batch_size):
            batch = encode([sequences[row] for row in rows])
            _check_finite(batch, [window[row] for row in rows], overflows)
            vectors[start + np.array(rows)] = batch
            if on_batch is not None:
                on_batch(len(rows))
    return vectors


def truncated(encode: Encode, dimension: int, *, normalize: bool) -> Encode:
    """``encode`` with the first ``dimension`` of its vectors' D dimensions only, scaled to length 1 if asked."""

    def encode_truncated(*args: Any, **settings: Any) -> NDArray[np.float32]:
        vectors = encode(*args, **settings)[:, :dimension]
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)  # as torch does
        return np.ascontiguousarray(vectors)

    return encode_truncated


def autocast_dtype(fp16: bool, bf16: bool, device: torch.device) -> torch.dtype | None:
    """The dtype that ``--fp16`` or ``--bf16`` ask for; UserError if ``device`` cannot compute in it."""
    if fp16 and bf16:
        raise UserError("--fp16 and --bf16 exclude each other: choose one")
    if fp16 and device.type == "cpu":
        raise UserError("--fp16 needs a GPU: a CPU computes in float32, or in bfloat16 with --bf16")
    if bf16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--bf16 needs a newer GPU than this one, which has no bfloat16: use --fp16")
    return torch.float16 if fp16 else torch.bfloat16 if bf16 else None


def check_fits(encoder: Encoder, tokenize: TextTokenizer) -> None:
    """Raise UserError if the encoder has no positions for the longest texts, or no embedding for a token."""
    backbone: Any = encoder.backbone
    embeddings, tokens = len(backbone.get_input_embeddings().weight), len(tokenize.tokenizer)
    if tokens > embeddings:
        raise UserError(
            f"the tokenizer has {tokens} tokens but the model only {embeddings} embeddings: "
            "pass the --tokenizer_name that belongs to the model"
        )
    positions = encoder.max_length
    if positions is not None and 0 < positions < tokenize.max_length:
        raise UserError(f"--{tokenize.flag} is {tokenize.max_length}, but the model has only {positions} positions")


def _batches(sequences: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Row numbers, longest sequences first: what does not fit into memory fails at once, and padding is little."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@contextlib.contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    was_training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(was_training)


def _check_finite(vectors: NDArray[np.float32], texts: Sequence[Text], overflows: bool) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        text_id = texts[int(np.argmin(finite))].text_id
        advice = "encode without --fp16, or with --bf16" if overflows else "the model is damaged"
        raise UserError(f"the vector of the text {text_id!r} holds NaN or infinity: {advice}")
