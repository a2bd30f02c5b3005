"""A training run with JAX: the torch driver's, with another step."""

import functools
from typing import Any

from fastdense.errors import UserError
from fastdense.jax.arguments import JaxTrainingArguments
from fastdense.jax.encoder import check_supported
from fastdense.jax.train_step import StepSettings
from fastdense.jax.trainer import JaxTrainer
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.training import run
from fastdense.training.arguments import ContrastiveArguments, DataArguments, ModelArguments
from fastdense.training.assemble import read_model
from fastdense.training.chunk_flags import AUTO
from fastdense.training.objective import OBJECTIVE_FLAGS


def make_step(contrastive: ContrastiveArguments, args: JaxTrainingArguments) -> StepSettings:
    """The step that the flags ask for; ``--negatives_x_device`` is how it is anyway."""
    for name in ("gc_tokens_per_chunk", "gc_keep_graph_gib"):
        if getattr(contrastive, name) != AUTO:
            raise UserError(f"--{name} is refused: chunks of a compiled step have one shape, and none keeps its graph")
    for name in OBJECTIVE_FLAGS:
        if getattr(contrastive, name) is not None:
            raise UserError(f"--{name} is refused: the loss for JAX has none; train with python -m fastdense.train")
    chunk_rows = (contrastive.gc_q_chunk_size, contrastive.gc_p_chunk_size) if contrastive.grad_cache else None
    return StepSettings(
        scale=1 / contrastive.temperature,
        label_smoothing=args.label_smoothing_factor,
        mask_duplicates=contrastive.mask_duplicates,
        chunk_rows=chunk_rows,
    )


def load_supported_model(
    model: ModelArguments, data: DataArguments, _args: JaxTrainingArguments
) -> tuple[Retriever, Any, RetrieverSettings]:
    """The retriever on the host; UserError for one that has no JAX encoder."""
    if model.attn_implementation is not None:
        raise UserError("--attn_implementation is refused: it chooses among PyTorch's, and the encoder is JAX's")
    if model.lora:
        raise UserError("--lora is refused: its layers are PyTorch's, and the encoder is JAX's")
    loaded = read_model(model, data)
    check_supported(loaded[0])
    return loaded


train = functools.partial(run.train, load_model=load_supported_model, make_step=make_step, trainer_class=JaxTrainer)
