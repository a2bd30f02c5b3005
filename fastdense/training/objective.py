"""What is trained beside or instead of the plain contrastive loss, from the flags that say so."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fastdense.errors import UserError
from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.loss.prefix_walk import check_dims
from fastdense.modeling.settings import RetrieverSettings
from fastdense.training.step import Distillation, Prefixes

if TYPE_CHECKING:
    from fastdense.training.arguments import ContrastiveArguments

# The JAX driver has none of them.
OBJECTIVE_FLAGS = (
    "matryoshka_dims",
    "matryoshka_weights",
    "false_negative_margin",
    "false_negative_relative_margin",
    "distil_temperature",
    "guide_model",
)


def check_objective(flags: "ContrastiveArguments") -> None:
    """Raise UserError for dimensions, weights or margins that cannot be meant, seen from the flags alone."""
    if flags.matryoshka_dims is None:
        if flags.matryoshka_weights is not None:
            raise UserError("--matryoshka_weights is for --matryoshka_dims: pass that, too, or leave it out")
    else:
        try:
            check_dims(flags.matryoshka_dims, flags.matryoshka_weights)
        except ValueError as error:
            raise UserError(f"--matryoshka_dims and --matryoshka_weights: {error}") from error
    for name in ("false_negative_margin", "false_negative_relative_margin"):
        value = getattr(flags, name)
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{name} must be a finite number, not {value}")
    if flags.distil_temperature is None and flags.distil_weight != 1:
        raise UserError("--distil_weight is for --distil_temperature: pass that, too, or leave it out")
    for name in ("distil_temperature", "distil_weight"):
        value = getattr(flags, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be a positive number, not {value}")


def make_prefixes(flags: "ContrastiveArguments") -> Prefixes | None:
    """What ``--matryoshka_dims`` asks for."""
    if flags.matryoshka_dims is None:
        return None
    return Prefixes(tuple(flags.matryoshka_dims), flags.matryoshka_weights)


def make_filter(flags: "ContrastiveArguments") -> FalseNegativeFilter | None:
    """What the margins of false negatives ask for."""
    absolute, relative = flags.false_negative_margin, flags.false_negative_relative_margin
    if absolute is None and relative is None:
        return None if flags.guide_model is None else FalseNegativeFilter(absolute=0.0)
    return FalseNegativeFilter(absolute, relative)


def make_distillation(flags: "ContrastiveArguments") -> Distillation | None:
    """What ``--distil_temperature`` asks for."""
    return None if flags.distil_temperature is None else Distillation(flags.distil_temperature, flags.distil_weight)


def with_prefixes(flags: "ContrastiveArguments", settings: RetrieverSettings, dimension: int) -> RetrieverSettings:
    """The settings that say which prefixes were trained; UserError for one longer than the ``dimension`` there is."""
    dims = flags.matryoshka_dims
    if dims is not None and max(dims) > dimension:
        raise UserError(f"--matryoshka_dims {max(dims)} is more than the {dimension} dimensions of the representations")
    return replace(settings, matryoshka_dims=None if dims is None else tuple(sorted(dims, reverse=True)))
