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
    tenth of a small encoder's step. Here only the rows of the chunk's own tokens are touched.

    A lookup is left to torch where the table has no more rows than the lookup, is frozen or on another device, or has
    renormalization, sparse gradients or gradients scaled by frequency.

    Args:
        model: its ``nn.Embedding`` modules are looked at; what is no module has none.

    Attributes:
        sums: the gradients so far of each table that was looked up, in float32 or the table's own dtype if that is
            wider; whoever ends the step has to hand them on.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.sums: dict[Tensor, Tensor] = {}
        modules = model.modules() if isinstance(model, nn.Module) else ()
        self._tables = [module for module in modules if isinstance(module, nn.Embedding) and _is_plain(module)]
        # Autograd records a function only if one of its inputs wants a gradient; the table itself must not hear of one.
        self._anchor = torch.zeros((), requires_grad=True)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Collect gradients of lookups in this block: for the forward pass, and for a backward that repeats parts."""
        for module in self._tables:  # a mode of torch's functions would not reach what a backward pass repeats
            module.forward = partial(self._look_up, module)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in self._tables:
                del module.forward

    def _look_up(self, module: nn.Embedding, ids: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or ids.numel() >= module.num_embeddings:
            return nn.Embedding.forward(module, ids)
        vectors: Tensor = _Lookup.apply(self._anchor, module.weight.detach(), ids, partial(self._add, module))
        return vectors

    def _add(self, module: nn.Embedding, ids: Tensor, gradient: Tensor) -> None:
        table = module.weight
        if table not in self.sums:
            self.sums[table] = torch.zeros_like(table, dtype=torch.promote_types(table.dtype, torch.float32))
        total = self.sums[table]
        rows, gradient = ids.reshape(-1), gradient.reshape(-1, table.shape[1]).to(total.dtype)
        if module.padding_idx is not None:
            gradient = gradient.masked_fill((rows == module.padding_idx).unsqueeze(1), 0)
        total.index_add_(0, rows, gradient)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, table: Tensor, ids: Tensor, add: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.ids, ctx.add = ids, add
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.add(ctx.ids, gradient)
        return None, None, None, None


def _is_plain(module: nn.Embedding) -> bool:
    own_forward = type(module).forward is not nn.Embedding.forward or "forward" in vars(module)
    special = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    trained_leaf = module.weight.requires_grad and module.weight.is_leaf and module.weight.device.type == "cpu"
    return trained_leaf and not own_forward and not special
