"""Gradients of embedding tables, summed over the chunks of a step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TableGradients:
    """Within :meth:`collecting`, lookups in a model's large tables on a CPU add their gradients to one sum per table.

    torch's backward of a lookup fills a gradient of the whole table, which is then added to what other chunks have
    left. For a chunk of 1,024 tokens and a vocabulary of 30,000 that is 30 times what the chunk's tokens need, and a
    tenth of a small encoder's step. Here only the rows of the chunk's own tokens are touched, and the sum becomes the
    table's gradient in the backward pass of the step's last call.

    A lookup is left to torch where the table has no more rows than the lookup, is frozen or on another device, or has
    renormalization, sparse gradients or gradients scaled by frequency.

    Args:
        model: its ``nn.Embedding`` modules are looked at; what is no module has none.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        # Of each table that was looked up, in float32 or the table's own dtype if that is wider.
        self._sums: dict[Tensor, Tensor] = {}
        self._handed_on: set[Tensor] = set()
        modules = model.modules() if isinstance(model, nn.Module) else ()
        self._tables = [module for module in modules if isinstance(module, nn.Embedding) and _is_plain(module)]
        # Autograd records a function only if one of its inputs wants a gradient; the table itself must not hear of one.
        self._anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def collecting(self, *, last: bool) -> Iterator[None]:
        """Collect gradients of lookups in this block: for the forward pass, and for a backward that repeats parts.

        Args:
            last: the step's last call, whose lookups hand their tables' sums on to autograd, with their own rows added.
        """
        for module in self._tables:  # a mode of torch's functions would not reach what a backward pass repeats
            module.forward = partial(self._look_up, module, last)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in self._tables:
                del module.forward

    def take_the_others(self) -> dict[Tensor, Tensor]:
        """The sums of tables that the last call did not look up; whoever ends the step has to hand them on."""
        return {table: self._take(table) for table in list(self._sums) if table not in self._handed_on}

    def _look_up(self, module: nn.Embedding, last: bool, ids: Tensor) -> Tensor:
        table = module.weight
        if not torch.is_grad_enabled() or ids.numel() >= module.num_embeddings:
            return nn.Embedding.forward(module, ids)
        vectors: Tensor
        if last:
            self._handed_on.add(table)
            vectors = _Lookup.apply(table, None, ids, partial(self._add_and_take, module))
        else:
            vectors = _Lookup.apply(table.detach(), self._anchor, ids, partial(self._add, module))
        return vectors

    def _add(self, module: nn.Embedding, ids: Tensor, gradient: Tensor) -> None:
        table = module.weight
        if table not in self._sums:
            self._sums[table] = torch.zeros_like(table, dtype=torch.promote_types(table.dtype, torch.float32))
        total = self._sums[table]
        rows, gradient = ids.reshape(-1), gradient.reshape(-1, table.shape[1]).to(total.dtype)
        if module.padding_idx is not None:
            gradient = gradient.masked_fill((rows == module.padding_idx).unsqueeze(1), 0)
        total.index_add_(0, rows, gradient)

    def _add_and_take(self, module: nn.Embedding, ids: Tensor, gradient: Tensor) -> Tensor:
        self._add(module, ids, gradient)
        return self._take(module.weight)

    def _take(self, table: Tensor) -> Tensor:
        return self._sums.pop(table).to(table.dtype)


class _Lookup(torch.autograd.Function):
    """``anchor`` is what wants a gradient where the table must not hear of one."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, anchor: Tensor | None, ids: Tensor, add: Callable[[Tensor, Tensor], Tensor | None]
    ) -> Tensor:
        ctx.ids, ctx.add = ids, add
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        return ctx.add(ctx.ids, gradient), None, None, None


def _is_plain(module: nn.Embedding) -> bool:
    own_forward = type(module).forward is not nn.Embedding.forward or "forward" in vars(module)
    special = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    trained_leaf = module.weight.requires_grad and module.weight.is_leaf and module.weight.device.type == "cpu"
    return trained_leaf and not own_forward and not special
