"""What every drop-in is held against: the class that it replaces, and that class in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

Loss = Callable[..., Tensor]
Answer = tuple[Tensor, ...]
TOLERANCE = 1e-6  # of a loss and of a gradient's norm, beyond the errors that the replaced class makes as well


def loss_and_gradients(loss: Loss, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> Answer:
    """The loss of fresh copies of the inputs, and the gradient of each."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).norm() / exact.norm())


@pytest.fixture
def assert_exact() -> Callable[[Loss, Loss, Sequence[Tensor]], None]:
    """``assert_exact(ours, theirs, inputs)``: our float32 loss and gradients are as near to their float64 as theirs."""

    def check(ours: Loss, theirs: Loss, inputs: Sequence[Tensor]) -> None:
        exact = loss_and_gradients(theirs, inputs, torch.float64)
        pairs = zip(loss_and_gradients(ours, inputs), loss_and_gradients(theirs, inputs), exact, strict=True)
        for actual, expected, true in pairs:
            assert actual.shape == expected.shape
            assert relative_error(actual, true) <= 2 * relative_error(expected, true) + TOLERANCE

    return check


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """``normal(rows, columns, ...)``: random numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)
