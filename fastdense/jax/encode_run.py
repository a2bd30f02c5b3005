"""The flags of ``fastdense.jax_encode``, and from them to what encodes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.jax.encode import TextEncoder
from fastdense.jax.encoder import JaxRetriever
from fastdense.jax.mesh import make_mesh, replicate
from fastdense.modeling.encoder import Retriever
from fastdense.retrieval.arguments import EncodeArguments, EncoderArguments
from fastdense.retrieval.loading import as_asked, describe_encoder, read_encoder


@dataclass
class JaxEncoderArguments(EncoderArguments):
    """Which model encodes, and how; ``per_device`` is per device of JAX's."""

    dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "What the model computes in. --bf16 is bfloat16."}
    )

    _argument_group_name = EncoderArguments._argument_group_name

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fp16:
            raise UserError("--fp16 is refused: TPUs have no float16: use --bf16")
        if self.attn_implementation is not None:
            raise UserError("--attn_implementation is refused: it chooses among PyTorch's, and the encoder is JAX's")
        if self.bf16:
            self.dtype, self.bf16 = "bfloat16", False


def load_jax_encoder(
    model: JaxEncoderArguments, data: EncodeArguments
) -> tuple[Callable[..., NDArray[np.float32]], Callable[[], dict[str, str]]]:
    """``encode(texts, on_batch=None)``, the vectors of texts, computed on all devices of this host; and
    ``describe()``, what they depend on."""
    encoder, tokenize = read_encoder(model, data)
    retriever = Retriever(encoder, encoder)  # the other side's weights are not needed
    jax_retriever = JaxRetriever.from_torch(retriever, dtype=jnp.dtype(model.dtype))
    mesh = make_mesh()
    params: Any = replicate(jax_retriever.params, mesh)
    encode = TextEncoder(jax_retriever, mesh, model.per_device_eval_batch_size, encoder.dimension)
    of_side = functools.partial(encode, params, "query" if data.encode_is_qry else "passage", tokenize)
    return (
        as_asked(of_side, model, encoder),
        functools.partial(describe_encoder, encoder, tokenize, model.dtype, model.truncate_dim),
    )
