"""The cached forward pass: representations now, one chunk's graph at a time later."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from fastdense.grad_cache.keeping import GraphBudget
from fastdense.grad_cache.memory import give_back_freed, in_short, is_out_of_memory
from fastdense.grad_cache.state import AutocastState, RandomState
from fastdense.grad_cache.stream import Batch, Chunk, Side, SortedOrder, Stream
from fastdense.grad_cache.tables import TableGradients

Outputs = Sequence[Tensor | None]


@dataclass(frozen=True)
class CachedForward:
    """All representations of a batch, in the order of its rows, that keep no activations but what a budget allows.

    Both tensors take part in autograd: a backward pass that reaches them runs the model's chunks again, each followed
    at once by its own backward pass. It has to reach both at once (one loss), and can run once.
    """

    query: Tensor
    """[N, D]"""
    passage: Tensor
    """[M, D]"""
    tokens: int
    """of both batches, without padding"""
    padded_tokens: int
    """that the model saw in its first pass"""

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
    query_chunk_rows: int | None = None,
    passage_chunk_rows: int | None = None,
    max_tokens: int | None = None,
    one_encoder: bool = False,
    query_lengths: Sequence[int] | None = None,
    passage_lengths: Sequence[int] | None = None,
    graphs: GraphBudget | None = None,
) -> CachedForward:
    """Encode a batch chunk by chunk, with memory for the graph of one chunk instead of the whole batch's.

    Args:
        model: ``model(query=batch | None, passage=batch | None) -> (Tensor [n, D] | None, Tensor [m, D] | None)``,
            also wrapped in DistributedDataParallel, autocast or torch.compile.
        query, passage: padded batches, tensors [N, L] and [M, L'] with an ``attention_mask``.
        query_chunk_rows, passage_chunk_rows, max_tokens: limits of a chunk, see :func:`plan_chunks`; None for none.
        one_encoder: queries and passages go through the same weights: their chunks are planned together, and all of
            them are handed to the model as passages. In a chunk of both, queries and passages divide the rows.
        query_lengths, passage_lengths: tokens of each row, padded on the right, where the host knows them. Without
            them a GPU is waited for.
        graphs: memory for graphs of the first pass, for a whole run; None for none.

    Returns:
        The representations; their backward pass replays each call with the random state and autocast settings of the
        first, and leaves the random generators as it found them. A call that has kept its graph is not run again, to
        the same bits. Under DistributedDataParallel gradients are reduced once, in the last call, which every parameter
        takes part in; within the caller's ``no_sync()`` not at all.

    Raises:
        ValueError: a batch has no rows, its lengths do not fit it, or a limit is less than 1.
    """
    sides = (
        Side("query", query, query_lengths, query_chunk_rows),
        Side("passage", passage, passage_lengths, passage_chunk_rows),
    )
    streams = [Stream(sides, max_tokens)] if one_encoder else [Stream([side], max_tokens) for side in sides]
    calls = _Calls(model, streams, GraphBudget(0) if graphs is None else graphs)
    # Autograd records a function only if one of its inputs wants a gradient.
    anchor = torch.zeros((), requires_grad=True)
    vectors = _Replayed.apply(anchor, calls)
    query_vectors, passage_vectors = (
        side for stream, own in zip(streams, vectors, strict=True) for side in _Apart.apply(own, stream.order)
    )
    tokens = sum(stream.tokens for stream in streams)
    return CachedForward(query_vectors, passage_vectors, tokens, calls.padded_tokens)


class _Call:
    """One model call: its chunk of each stream, the random state before it, and its outputs if it keeps their graph."""

    def __init__(self, chunks: Sequence[Chunk | None]) -> None:
        self.chunks = chunks
        self.random_state: RandomState | None = None
        self.kept: Outputs | None = None
        present = [chunk for chunk in chunks if chunk is not None]
        self.padded_tokens = sum(chunk.padded_tokens for chunk in present)
        self.width = max(chunk.width for chunk in present)

    def restore_random_state(self) -> None:
        assert self.random_state is not None
        self.random_state.restore()


class _Calls:
    """The model calls of a step, run once for the representations and, unless kept, once more for the gradients."""

    def __init__(self, model: Callable[..., Any], streams: Sequence[Stream], graphs: GraphBudget) -> None:
        self._model = model
        # With gradients on, DistributedDataParallel's forward talks to the other ranks, which may keep other graphs.
        self._alone = model.module if isinstance(model, DistributedDataParallel) else model
        self._streams = streams
        self._graphs = graphs
        self._device_type = streams[0].device_type
        self._autocast = AutocastState.capture(self._device_type)
        self._compiled = _is_compiled(model)
        self._tables = TableGradients(model)
        # Whoever accumulates gradients may run the forward pass alone inside no_sync().
        self._reduces = getattr(model, "require_backward_grad_sync", True)
        self._calls = [_Call(chunks) for chunks in _in_turn([stream.chunks for stream in streams])]
        self.padded_tokens = sum(call.padded_tokens for call in self._calls)

    def run(self) -> tuple[Tensor, ...]:
        """First pass: the representations of each stream in the order of its chunks, [rows, D]."""
        vectors: list[Tensor | None] = [None for _ in self._streams]
        random_state = torch.get_rng_state()
        states = random_state.new_empty(len(self._calls), len(random_state))
        self._graphs.start()
        with torch.no_grad(), self._no_reduction():
            for call, state in zip(self._calls, states, strict=True):
                call.random_state = RandomState.capture(self._device_type).stored_in(state)
                self._write(self._first_run(call), call, vectors)
        self._graphs.release_room()
        # In torch 2.10 it now holds weights that were cast without a graph; a replay would lose their gradients.
        torch.clear_autocast_cache()
        return tuple(own for own in vectors if own is not None)

    def _write(self, outputs: Outputs, call: _Call, vectors: list[Tensor | None]) -> None:
        """Copy a call's outputs to their places: each by itself would pin the memory of its chunk until the last."""
        for index, (output, chunk) in enumerate(zip(outputs, call.chunks, strict=True)):
            if output is None or chunk is None:
                continue
            own = vectors[index]
            if own is None:
                own = vectors[index] = output.new_empty(self._streams[index].rows, *output.shape[1:])
            own[chunk.rows] = output.detach()

    def replay(self, *wanted: Tensor) -> None:
        """Second pass: the backward of each call, which runs again, with a graph, if it has kept none.

        Args:
            wanted: the gradients of :meth:`run`'s results.
        """
        with RandomState.kept(self._device_type), torch.enable_grad(), self._autocast.restored():
            with self._no_reduction():
                for call in self._calls[:-1]:
                    self._backward(call, wanted)
            with contextlib.nullcontext() if self._reduces else self._no_reduction():
                self._backward(self._calls[-1], wanted)

    def _first_run(self, call: _Call) -> Outputs:
        try:
            return self._keeping(call) if self._may_keep(call) else self._not_keeping(call)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._graphs.off:
                raise
            reason = in_short(error)
        # Outside of the handler: the error holds what the call has made.
        self._let_go()
        call.restore_random_state()
        outputs = self._not_keeping(call)
        self._graphs.give_up(f"chunks run twice, because there was no memory for more ({reason})")
        return outputs

    def _let_go(self) -> None:
        for call in self._calls:
            call.kept = None
        self._graphs.release_room()
        give_back_freed(self._device_type)

    def _may_keep(self, call: _Call) -> bool:
        if self._compiled and self._device_type == "cpu" and not (self._graphs.off or self._graphs.measured):
            self._graphs.give_up("what a compiled encoder's activations take cannot be measured on a CPU")
        # DistributedDataParallel reduces gradients in the backward pass of the last forward pass outside no_sync().
        reducing = call is self._calls[-1] and self._reduces and hasattr(self._model, "no_sync")
        return not reducing and self._graphs.admits(call.padded_tokens, call.width)

    def _keeping(self, call: _Call) -> Outputs:
        with torch.enable_grad():
            if self._graphs.measured:
                self._graphs.hold_room(((other.padded_tokens, other.width) for other in self._calls), self._device_type)
                call.kept = self._call(call, self._alone)
                return call.kept
            size = (call.padded_tokens, call.width)
            outputs = self._graphs.measure(lambda: self._call(call, self._alone), self._device_type, *size, self._model)
            call.kept = outputs if self._graphs.admits(*size) else None
            return outputs

    def _not_keeping(self, call: _Call) -> Outputs:
        # Without a graph torch.compile would run another program, with other dropout, than the replay.
        with torch.set_grad_enabled(self._compiled):
            return self._call(call, self._model)

    def _call(self, call: _Call, model: Callable[..., Any]) -> Outputs:
        inputs = [stream.take(chunk) for stream, chunk in zip(self._streams, call.chunks, strict=True)]
        with self._summing_tables(call):
            if len(inputs) == 1:
                return model(passage=inputs[0])[1:]
            return model(query=inputs[0], passage=inputs[1])

    def _backward(self, call: _Call, wanted: Sequence[Tensor]) -> None:
        outputs, call.kept = call.kept, None
        if outputs is None:
            call.restore_random_state()
            outputs = self._call(call, self._model)
        roots, gradients = [], []
        for output, chunk, grad in zip(outputs, call.chunks, wanted, strict=True):
            if output is not None and chunk is not None and output.requires_grad:  # not so for a frozen encoder
                roots.append(output)
                gradients.append(grad[chunk.rows])
        if call is self._calls[-1]:
            others = self._tables.take_the_others()
            roots += others.keys()
            gradients += others.values()
        with self._summing_tables(call):  # activation checkpointing looks up again
            torch.autograd.backward(roots, gradients)

    def _summing_tables(self, call: _Call) -> contextlib.AbstractContextManager[Any]:
        """Each table gets one gradient, in the last call's backward pass."""
        last = call is self._calls[-1]
        return contextlib.nullcontext() if self._compiled else self._tables.collecting(last=last)

    def _no_reduction(self) -> contextlib.AbstractContextManager[None]:
        """DistributedDataParallel's no_sync(), for a model that has it."""
        return getattr(self._model, "no_sync", contextlib.nullcontext)()


class _Replayed(torch.autograd.Function):
    """The first pass as forward, the second as backward."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, calls: _Calls) -> tuple[Tensor, ...]:
        ctx.calls = calls
        return calls.run()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        if ctx.calls is None:
            raise RuntimeError("a cached forward pass can be differentiated once: run it again for another backward")
        calls, ctx.calls = ctx.calls, None
        calls.replay(*gradients)
        return None, None


class _Apart(torch.autograd.Function):
    """A stream's representations by side.

    A function of its own: autograd lets go of what its backward gets before it calls that of :class:`_Replayed`.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, order: SortedOrder) -> tuple[Tensor, ...]:
        ctx.order = order
        return tuple(order.apart(vectors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.order.sort(gradients), None


def _in_turn(chunks: Sequence[Sequence[Chunk]]) -> list[tuple[Chunk | None, ...]]:
    """The chunks of each call: one stream at a time, and at last the remainder of every stream."""
    alone = [
        tuple(chunk if other == index else None for other in range(len(chunks)))
        for index, own in enumerate(chunks)
        for chunk in own[:-1]
    ]
    return [*alone, tuple(own[-1] for own in chunks)]


def _is_compiled(model: Callable[..., Any]) -> bool:
    """Whether torch.compile wraps the model or one of its modules."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)
