"""LoRA: train low-rank updates of some layers while the backbone stays as it is, through peft.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder, Retriever, freeze_unused_pooler
from fastdense.modeling.reason import reason

TRAINED_FILE = "lora.safetensors"


@dataclass(frozen=True)
class LoraSettings:
    """Rank, scale (alpha / rank) and dropout of the updates, and the names of the layers that get one.

    ``target_modules`` None is peft's choice for the model's architecture, ``["all-linear"]`` every linear layer.
    """

    rank: int
    alpha: int
    dropout: float
    target_modules: Sequence[str] | None = None


def add_lora(retriever: Retriever, settings: LoraSettings) -> None:
    """Give each encoder's backbone adapters, in place, and freeze the rest of it; projections stay trainable.

    Raises:
        UserError: peft is not installed, or finds no layer to adapt.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError('--lora needs the package peft: pip install "fastdense[lora]"') from error
    targets = list(settings.target_modules or [])
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets or None,
    )
    for encoder in retriever.encoders:
        try:
            peft.inject_adapter_in_model(copy.deepcopy(config), encoder.backbone)
        except ValueError as error:
            kind = encoder.backbone.config.model_type
            raise UserError(
                f"--lora cannot adapt this model ({kind}): {reason(error)}; see --lora_target_modules"
            ) from error
        freeze_unused_pooler(encoder.backbone)


def has_lora(retriever: Retriever) -> bool:
    """Whether :func:`add_lora` has been here."""
    return any(hasattr(module, "lora_A") for module in retriever.modules())


def merged(retriever: Retriever) -> Retriever:
    """A copy with the updates added to the layers, as plain as a retriever without LoRA; itself if it has none.

    The original is left alone: merged weights are rounded, and taking an update off again would not give them back.
    """
    if not has_lora(retriever):
        return retriever
    towers = {id(encoder): _merged_encoder(encoder) for encoder in retriever.encoders}
    return Retriever(towers[id(retriever.query_encoder)], towers[id(retriever.passage_encoder)])


def _merged_encoder(encoder: Encoder) -> Encoder:
    plain = copy.deepcopy(encoder)
    adapted = [(name, module) for name, module in plain.backbone.named_modules() if hasattr(module, "lora_A")]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(plain.backbone.get_submodule(parent), child, module.get_base_layer())
    return plain


def save_trained(retriever: Retriever, directory: Path) -> None:
    """Write what LoRA trains, bit for bit: a resumed run goes on from it, on the model that it began with."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in _trained(retriever).items()}
    safetensors.torch.save_file(tensors, directory / TRAINED_FILE)


def load_trained(retriever: Retriever, directory: Path) -> None:
    """Put what :func:`save_trained` wrote back in place.

    Raises:
        UserError: it is missing or damaged, or was written for other adapters.
    """
    path = directory / TRAINED_FILE
    if not path.is_file():
        raise UserError(f"{directory} was saved by a run without --lora: resume with the flags that the run began with")
    try:
        saved = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({reason(error)}); resume from another checkpoint") from error
    own = _trained(retriever)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in own.items()}:
        raise UserError(
            f"{path} has other adapters than --lora_... ask for: resume with the flags that the run began with"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def _trained(retriever: Retriever) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in retriever.named_parameters() if parameter.requires_grad}
