"""Read the linear projection of a model directory, in sentence-transformers' form or in Tevatron's."""

import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastdense.errors import UserError
from fastdense.modeling.layout import Tower
from fastdense.modeling.source import ModelSource


def read_projection(source: ModelSource, tower: Tower) -> nn.Linear | None:
    """The projection of one tower in float32, or None if the directory has none for it.

    Raises:
        UserError: its file is missing, damaged or does not hold a linear projection.
    """
    if tower.dense is not None:
        return _read_dense(source, tower.dense)
    if tower.tevatron_linear is not None:
        return _read_pooler(source, tower.tevatron_linear)
    return None


def linear_from(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A float32 ``nn.Linear`` with copies of weight [out, in] and bias [out]."""
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def _read_dense(source: ModelSource, folder: str) -> nn.Linear:
    path = source.file(f"{folder}/model.safetensors") or source.file(f"{folder}/pytorch_model.bin")
    if path is None:
        raise UserError(f"{source}/{folder} has no model.safetensors: the projection's weights are missing")
    return _pick(path, _read_tensors(path), "linear")


def _read_pooler(source: ModelSource, name: str) -> nn.Linear:
    path = source.file("pooler.pt")
    if path is None:
        raise UserError(f"{source} has no pooler.pt")
    return _pick(path, _read_tensors(path), name)


def _read_tensors(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is damaged or no file of weights: copy or download it again") from error


def _pick(path: Path, tensors: Any, name: str) -> nn.Linear:
    weight = tensors.get(f"{name}.weight") if isinstance(tensors, dict) else None
    bias = tensors.get(f"{name}.bias") if isinstance(tensors, dict) else None
    if not isinstance(weight, Tensor) or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise UserError(f"{path} must hold {name}.weight [out, in] and {name}.bias [out]")
    return linear_from(weight, bias)
