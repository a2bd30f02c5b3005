"""``--dry_run``: what a run would do and need, from its first batch and one chunk's forward pass."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from fastdense.data.source_mix import SourceMix
from fastdense.data.streaming import StreamedSet
from fastdense.grad_cache.memory import activation_bytes
from fastdense.modeling.encoder import Retriever
from fastdense.retrieval.encode import autocast_dtype
from fastdense.training.arguments import RetrieverTrainingArguments
from fastdense.training.distinct import SIDES
from fastdense.training.step import ContrastiveStep, StepResult

_MEASURED_TOKENS = 4096  # of a larger call only a part is run
_VECTOR_COPIES = 2  # representations, and their gradients in the order of the chunks
_GIB = 2**30

Sides = Mapping[str, Mapping[str, Tensor] | None]


class _Recorder(nn.Module):
    """Takes the retriever's place in a step, and encodes nothing."""

    def __init__(self, retriever: Retriever) -> None:
        super().__init__()
        self.retriever = retriever
        self.calls: list[Sides] = []

    def forward(self, **sides: Mapping[str, Tensor] | None) -> list[Tensor | None]:
        self.calls.append(sides)
        inputs = [sides.get(side) for side in SIDES]
        weight = next(self.retriever.parameters())
        width = self.retriever.query_encoder.dimension
        return [None if one is None else weight.new_zeros(len(one["input_ids"]), width) for one in inputs]


def describe_run(
    retriever: Retriever,
    args: RetrieverTrainingArguments,
    step: ContrastiveStep,
    rows: Dataset,
    collator: Any,
) -> str:
    """The plan of a run, for people: parameters, batch, chunks of the first batch, and expected memory."""
    retriever.to(args.device)
    if args.gradient_checkpointing:
        retriever.activation_checkpointing_enable(args.gradient_checkpointing_kwargs)
    batch = _moved(first_batch(args, rows, collator), args.device)
    recorder = _Recorder(retriever)
    recording = dataclasses.replace(step, negatives_x_device=False, guide=None)
    if step.cache is not None:
        recording = dataclasses.replace(recording, cache=dataclasses.replace(step.cache, graphs=None))
    result = recording(recorder, batch)
    return "\n".join(
        [
            *_model_lines(retriever),
            *_batch_lines(args, step, batch, recorder.calls),
            *_chunk_lines(recorder.calls, result),
            *_memory_lines(retriever, args, step, batch, recorder.calls),
            f"nothing was trained, and nothing was written to {args.output_dir}",
        ]
    )


def first_batch(args: RetrieverTrainingArguments, rows: Any, collator: Any) -> dict[str, Any]:
    """This process's first batch, as the trainer's loader will draw it."""
    order: Sequence[int] | Tensor
    if isinstance(rows, StreamedSet):
        return collator(list(itertools.islice(rows, args.train_batch_size)))
    if isinstance(rows, SourceMix):
        order = list(rows.sampler(args.train_batch_size * args.world_size))
    elif args.train_sampling_strategy == "sequential":
        order = torch.arange(len(rows))
    else:
        seed = args.seed if args.data_seed is None else args.data_seed
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    start = args.process_index * args.train_batch_size
    return collator([rows[int(row)] for row in order[start : start + args.train_batch_size]])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _model_lines(retriever: Retriever) -> list[str]:
    encoder = retriever.query_encoder
    kind = f"{type(encoder.backbone).__name__}, {'one encoder' if retriever.tied else 'two encoders'}"
    total = sum(parameter.numel() for parameter in retriever.parameters())
    trained = sum(parameter.numel() for parameter in retriever.parameters() if parameter.requires_grad)
    return [
        f"model: {kind}, {encoder.pooling} pooling, {encoder.dimension} dimensions",
        f"parameters: {total:,}, of them {trained:,} trained",
    ]


def _batch_lines(
    args: RetrieverTrainingArguments, step: ContrastiveStep, batch: Mapping[str, Any], calls: Sequence[Sides]
) -> list[str]:
    queries, passages = len(batch["target"]), len(batch["passage_id"])
    scored = passages * (args.world_size if step.negatives_x_device else 1)
    encoded = sum(len(side["input_ids"]) for call in calls for side in call.values() if side is not None)
    return [
        f"batch: {queries} queries and {passages} passages a process, {args.world_size} process(es), "
        f"{args.gradient_accumulation_steps} batch(es) an optimizer step",
        f"negatives per query: {scored - 1}; a step scores {queries:,} x {scored:,} a process",
        f"encoded: {encoded} texts ({queries + passages - encoded} are copies of others)",
    ]


def _chunk_lines(calls: Sequence[Sides], result: StepResult) -> list[str]:
    shapes = [" and ".join(_shape(side) for side in call.values() if side is not None) for call in calls]
    shown = shapes if len(shapes) <= 8 else [*shapes[:4], "...", *shapes[-3:]]
    padding = 1 - result.tokens / result.padded_tokens
    return [
        f"chunks: {len(calls)} (rows x tokens): {', '.join(shown)}",
        f"tokens: {result.tokens:,}, with padding {result.padded_tokens:,} ({padding:.1%} padding)",
    ]


def _shape(inputs: Mapping[str, Tensor]) -> str:
    rows, width = inputs["input_ids"].shape
    return f"{rows} x {width}"


def _memory_lines(
    retriever: Retriever,
    args: RetrieverTrainingArguments,
    step: ContrastiveStep,
    batch: Mapping[str, Any],
    calls: Sequence[Sides],
) -> list[str]:
    weights = sum(parameter.nbytes for parameter in retriever.parameters())
    trained = sum(parameter.nbytes for parameter in retriever.parameters() if parameter.requires_grad)
    state = int(trained * _state_size(args))
    largest = max(calls, key=_tokens)
    per_token = _measure(retriever, args, step, largest)
    chunk = int(per_token * _tokens(largest))
    kept, count = _kept(step, calls)
    vectors = len(batch["target"]) + len(batch["passage_id"]) * (args.world_size if step.negatives_x_device else 1)
    representations = vectors * retriever.query_encoder.dimension * 4 * _VECTOR_COPIES
    lines = [
        f"memory: {_size(weights)} weights, {_size(trained)} gradients, {_size(state)} state of {args.optim.value}",
        f"activations: {per_token / 2**10:.1f} KiB a token, {_size(chunk)} in the largest chunk",
    ]
    if step.cache is not None:
        lines.append(f"kept graphs: {count} of {len(calls)} chunks run once, {_size(kept)}")
    if step.guide is not None:
        guide = sum(parameter.nbytes for parameter in step.guide.parameters())
        lines.append(f"guide: {_size(guide)} weights")
        weights += guide
    # Kept graphs are gone, one after the other, before a chunk is run again.
    peak = weights + trained + state + max(kept, chunk) + representations
    return [*lines, f"expected peak: about {_size(peak)} on {args.device.type}, beside the libraries themselves"]


def _tokens(call: Sides) -> int:
    return sum(side["input_ids"].numel() for side in call.values() if side is not None)


def _measure(retriever: Retriever, args: RetrieverTrainingArguments, step: ContrastiveStep, call: Sides) -> float:
    """Bytes of activations a token, from the forward pass of a call or of a part of it."""
    share = min(1.0, _MEASURED_TOKENS / _tokens(call))
    part: dict[str, Mapping[str, Tensor]] = {}
    for name, side in call.items():
        if side is not None:
            rows = max(1, int(len(side["input_ids"]) * share))
            part[name] = {key: tensor[:rows] for key, tensor in side.items()}
    width = max(side["input_ids"].shape[1] for side in part.values())
    dtype = autocast_dtype(args.fp16, args.bf16, args.device)
    device = args.device.type
    with contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype):
        if step.cache is None or step.cache.graphs is None or step.cache.graphs.off:
            _graph, size = activation_bytes(lambda: retriever(**part), device)
            return size / _tokens(part)
        step.cache.graphs.measure(lambda: retriever(**part), device, _tokens(part), width, retriever)
    return step.cache.graphs.bytes_per_token


def _kept(step: ContrastiveStep, calls: Sequence[Sides]) -> tuple[int, int]:
    """Bytes and number of the calls that keep their graph."""
    if step.cache is None or step.cache.graphs is None:
        return 0, 0
    graphs = step.cache.graphs
    graphs.start()
    widths = [max(side["input_ids"].shape[1] for side in call.values() if side is not None) for call in calls]
    count = sum(graphs.admits(_tokens(call), width) for call, width in zip(calls, widths, strict=True))
    return graphs.spent, count


def _state_size(args: RetrieverTrainingArguments) -> float:
    """Size of the optimizer's state beside its parameters', tried on a small matrix."""
    trial = nn.Parameter(torch.zeros(64, 64, device=args.device))
    trial.grad = torch.zeros_like(trial)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind([trial], **settings)
    optimizer.step()
    state = optimizer.state[trial].values()
    return sum(value.nbytes for value in state if isinstance(value, Tensor)) / trial.nbytes


def _size(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB else f"{size / 2**20:.0f} MiB"
