"""The cached forward pass: representations now, one chunk's graph at a time later."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastdense.grad_cache.chunks import plan_chunks, take_rows, token_spans
from fastdense.grad_cache.state import AutocastState, RandomState

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class CachedForward:
    """All representations of a batch, in the order of its rows, that keep no activations.

    Both tensors take part in autograd: a backward pass that reaches them runs the model's chunks again, each followed
    at once by its own backward pass. It has to reach both at once (one loss), and can run once.
    """

    query: Tensor
    """[N, D]"""
    passage: Tensor
    """[M, D]"""

    def backward(self, query_grad: Tensor, passage_grad: Tensor) -> None:
        """Send the gradients of the representations, [N, D] and [M, D], into the model's parameters."""
        torch.autograd.backward(
            (self.query, self.passage), (query_grad.to(self.query.dtype), passage_grad.to(self.passage.dtype))
        )


def cached_forward(
    model: Callable[..., tuple[Tensor | None, Tensor | None]],
    query: Batch,
    passage: Batch,
    *,
    query_chunk_rows: int,
    passage_chunk_rows: int,
    max_tokens: int | None = None,
) -> CachedForward:
    """Encode a batch chunk by chunk, with memory for the graph of one chunk instead of the whole batch's.

    Args:
        model: ``model(query=batch | None, passage=batch | None) -> (Tensor [n, D] | None, Tensor [m, D] | None)``,
            also wrapped in DistributedDataParallel, autocast or torch.compile.
        query, passage: padded batches, tensors [N, L] and [M, L'] with an ``attention_mask``.
        query_chunk_rows, passage_chunk_rows, max_tokens: limits of a chunk, see :func:`plan_chunks`.

    Returns:
        The representations; their backward pass replays each call with the random state and autocast settings of the
        first, and leaves the random generators as it found them. Under DistributedDataParallel it reduces gradients
        once, in the last call, which holds rows of both sides so that every parameter takes part; within the
        caller's ``no_sync()`` not at all.

    Raises:
        ValueError: a batch has no rows, or a limit is less than 1.
    """
    sides = (
        _Side.plan("query", query, query_chunk_rows, max_tokens),
        _Side.plan("passage", passage, passage_chunk_rows, max_tokens),
    )
    # Autograd records a function only if one of its inputs wants a gradient.
    anchor = torch.zeros((), requires_grad=True)
    return CachedForward(*_Replayed.apply(anchor, _Calls(model, *sides)))


@dataclass(frozen=True)
class _Side:
    """A batch of queries or of passages, and its chunks."""

    batch: Batch
    spans: Tensor
    chunks: list[Tensor]

    @classmethod
    def plan(cls, name: str, batch: Batch, max_rows: int, max_tokens: int | None) -> "_Side":
        spans = token_spans(batch["attention_mask"])
        if not len(spans):
            raise ValueError(f"the {name} batch has no rows")
        lengths = (spans[:, 1] - spans[:, 0]).clamp(min=0)
        return cls(batch, spans, plan_chunks(lengths, max_rows, max_tokens))

    def take(self, rows: Tensor | None) -> dict[str, Tensor] | None:
        return None if rows is None else take_rows(self.batch, rows, self.spans)

    def in_order(self, outputs: list[Tensor]) -> Tensor:
        """The outputs of all chunks, [rows, D], in the batch's order."""
        order = torch.cat(self.chunks)
        return torch.cat(outputs).index_select(0, order.argsort().to(outputs[0].device))


@dataclass(frozen=True)
class _Call:
    """One model call: its rows of each side, and the random state before it."""

    query_rows: Tensor | None
    passage_rows: Tensor | None
    random_state: RandomState


class _Calls:
    """The model calls of a step, run once for the representations and once more for the gradients."""

    def __init__(self, model: Callable[..., Any], query: _Side, passage: _Side) -> None:
        self._model = model
        self._query = query
        self._passage = passage
        self._device_type = query.batch["attention_mask"].device.type
        self._autocast = AutocastState.capture(self._device_type)
        # Whoever accumulates gradients may run the forward pass alone inside no_sync().
        self._reduces = getattr(model, "require_backward_grad_sync", True)
        self._calls: list[_Call] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """First pass: the representations [N, D] and [M, D]."""
        queries, passages = [], []
        # Without a graph torch.compile would run another program, with other dropout, than the replay.
        with torch.set_grad_enabled(_is_compiled(self._model)), self._no_reduction():
            for query_rows, passage_rows in self._chunks():
                self._calls.append(_Call(query_rows, passage_rows, RandomState.capture(self._device_type)))
                query, passage = self._call(self._calls[-1])
                if query is not None:
                    queries.append(query.detach())
                if passage is not None:
                    passages.append(passage.detach())
        # In torch 2.10 it now holds weights that were cast without a graph; a replay would lose their gradients.
        torch.clear_autocast_cache()
        return self._query.in_order(queries), self._passage.in_order(passages)

    def replay(self, query_grad: Tensor, passage_grad: Tensor) -> None:
        """Second pass: each call again, with a graph, and its backward."""
        with RandomState.kept(self._device_type), torch.enable_grad(), self._autocast.restored():
            with self._no_reduction():
                for call in self._calls[:-1]:
                    self._replay_call(call, query_grad, passage_grad)
            with contextlib.nullcontext() if self._reduces else self._no_reduction():
                self._replay_call(self._calls[-1], query_grad, passage_grad)

    def _chunks(self) -> list[tuple[Tensor | None, Tensor | None]]:
        *queries, last_query = self._query.chunks
        *passages, last_passage = self._passage.chunks
        return [*((rows, None) for rows in queries), *((None, rows) for rows in passages), (last_query, last_passage)]

    def _call(self, call: _Call) -> tuple[Tensor | None, Tensor | None]:
        return self._model(query=self._query.take(call.query_rows), passage=self._passage.take(call.passage_rows))

    def _replay_call(self, call: _Call, query_grad: Tensor, passage_grad: Tensor) -> None:
        call.random_state.restore()
        outputs = self._call(call)
        wanted = ((query_grad, call.query_rows), (passage_grad, call.passage_rows))
        roots, gradients = [], []
        for output, (grad, rows) in zip(outputs, wanted, strict=True):
            if output is not None and rows is not None and output.requires_grad:  # not so for a frozen encoder
                roots.append(output)
                gradients.append(grad.index_select(0, rows.to(grad.device, non_blocking=True)))
        torch.autograd.backward(roots, gradients)

    def _no_reduction(self) -> contextlib.AbstractContextManager[None]:
        """DistributedDataParallel's no_sync(), for a model that has it."""
        return getattr(self._model, "no_sync", contextlib.nullcontext)()


class _Replayed(torch.autograd.Function):
    """The first pass as forward, the second as backward."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, calls: _Calls) -> tuple[Tensor, Tensor]:
        ctx.calls = calls
        return calls.run()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query_grad: Tensor, passage_grad: Tensor) -> tuple[None, None]:
        if ctx.calls is None:
            raise RuntimeError("a cached forward pass can be differentiated once: run it again for another backward")
        calls, ctx.calls = ctx.calls, None
        calls.replay(query_grad, passage_grad)
        return None, None


def _is_compiled(model: Callable[..., Any]) -> bool:
    """Whether torch.compile wraps the model or one of its modules."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)
