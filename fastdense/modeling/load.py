"""Build a retriever from a model directory or a model on the hub."""

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fastdense.errors import UserError
from fastdense.modeling.backbone import is_decoder, load_backbone
from fastdense.modeling.encoder import Encoder, Retriever
from fastdense.modeling.layout import Tower, read_layout
from fastdense.modeling.pooling import POOLINGS
from fastdense.modeling.projection import read_projection
from fastdense.modeling.source import ModelSource, open_source

_DEFAULT_PROJECTION = (768, 768)  # the flags' defaults, which give way to what a directory brings


def load_retriever(
    name_or_path: str | Path,
    *,
    untie_encoder: bool = False,
    add_pooler: bool = False,
    projection_in_dim: int = 768,
    projection_out_dim: int = 768,
    normalize: bool | None = None,
    pooling: str | None = None,
    config_name: str | None = None,
    cache_dir: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> Retriever:
    """Load a retriever in float32, in training mode, on the CPU.

    A directory is taken for what it is: saved with separate encoders, it loads untied, with or without
    ``untie_encoder``; saved with a projection, it has that projection, with or without ``add_pooler`` (which adds a
    freshly initialized one only where there is none). ``untie_encoder`` on a shared encoder makes two equal copies
    that part in training.

    Args:
        name_or_path: Hugging Face, sentence-transformers or Tevatron v1 directory, or a model on the hub.
        projection_in_dim, projection_out_dim: width of the pooled vector and of the projected one.
        normalize, pooling: None means what the directory says, else not normalized and "cls".

    Raises:
        UserError: whatever is wrong with the model or does not fit the flags, in one sentence.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise UserError(f"--pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
    source = open_source(str(name_or_path), cache_dir, revision)
    layout = read_layout(source)
    read = functools.partial(
        _load_encoder,
        source,
        pooling=pooling,
        normalize=normalize,
        config_name=config_name,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
    )
    query = read(layout.query)
    passage = query if layout.tied else read(layout.passage)
    if add_pooler:
        for encoder in {id(query): query, id(passage): passage}.values():
            _add_projection(encoder, projection_in_dim, projection_out_dim, source)
    if untie_encoder and query is passage:
        # A copy, projection included: two unrelated random projections would make every first score meaningless.
        passage = copy.deepcopy(query)
    if query.dimension != passage.dimension:
        raise UserError(f"{source}: queries have {query.dimension} dimensions but passages {passage.dimension}")
    return Retriever(query, passage)


def load_weights(retriever: Retriever, directory: str | Path) -> None:
    """Overwrite ``retriever``'s weights, in place, by those of a directory that was saved from its like.

    Draws no random numbers.

    Raises:
        UserError: the directory is damaged, or its parts or shapes are not exactly the retriever's.
    """
    # A model with its own code is already running it.
    own_code = any(type(e.backbone).__module__.startswith("transformers_modules.") for e in retriever.encoders)
    with torch.random.fork_rng(devices=[]):
        saved = load_retriever(directory, trust_remote_code=own_code)
    weights, own = saved.state_dict(), retriever.state_dict()
    different = sorted(name for name in weights.keys() | own.keys() if _shape(weights, name) != _shape(own, name))
    kind, own_kind = _kind(saved), _kind(retriever)
    if different or kind != own_kind:
        difference = different[0] if kind == own_kind else f"{kind} there; {own_kind} here"
        raise UserError(f"{directory} was saved from another kind of model than the one in training ({difference})")
    retriever.load_state_dict(weights)


def _load_encoder(
    source: ModelSource, tower: Tower, pooling: str | None, normalize: bool | None, **backbone_settings: Any
) -> Encoder:
    backbone = load_backbone(source, tower.backbone, **backbone_settings)
    pooling = pooling or tower.pooling or "cls"
    _check_pooling(source, pooling, backbone)
    projection = read_projection(source, tower)
    hidden_size = backbone.config.hidden_size
    if projection is not None and projection.in_features != hidden_size:
        raise UserError(
            f"{source}: the saved projection takes {projection.in_features} dimensions, but the encoder's hidden size "
            f"is {hidden_size}"
        )
    return Encoder(backbone, pooling, projection, bool(tower.normalize) if normalize is None else normalize)


def _kind(retriever: Retriever) -> str:
    """What the weights do not tell."""
    encoder = retriever.query_encoder
    return (
        f"{'shared' if retriever.tied else 'separate'} encoders, {encoder.pooling} pooling, "
        f"{'' if encoder.normalize else 'not '}normalized"
    )


def _shape(weights: dict[str, Any], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _check_pooling(source: ModelSource, pooling: str, backbone: PreTrainedModel) -> None:
    if pooling == "cls" and is_decoder(backbone.config):
        raise UserError(
            f"{source} is a decoder ({backbone.config.model_type}): its first token sees none of the others, so "
            f"--pooling cls would give every text the same vector; pass --pooling last"
        )


def _add_projection(encoder: Encoder, in_dim: int, out_dim: int, source: ModelSource) -> None:
    hidden_size = encoder.backbone.config.hidden_size
    if encoder.projection is not None:
        found = (encoder.projection.in_features, encoder.projection.out_features)
        if (in_dim, out_dim) not in (found, _DEFAULT_PROJECTION):
            raise UserError(
                f"--projection_in_dim {in_dim} and --projection_out_dim {out_dim} differ from the projection that "
                f"{source} brings ({found[0]} to {found[1]}): leave the flags out"
            )
        return
    if in_dim != hidden_size:
        raise UserError(
            f"--projection_in_dim is {in_dim}, but the hidden size of {source} is {hidden_size}: "
            f"pass --projection_in_dim {hidden_size}"
        )
    if out_dim < 1:
        raise UserError(f"--projection_out_dim must be at least 1, not {out_dim}")
    encoder.projection = nn.Linear(in_dim, out_dim)
