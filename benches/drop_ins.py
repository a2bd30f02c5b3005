"""Time what each drop-in replaces, and the drop-in: loss and gradients from representations, on one device.

    python -m benches drop_ins --queries 1024 --passages 2 --width 384 --threads 2

Before and after take turns in one process, so that a busy machine slows both; times are medians. "peak" is what a call
adds to the memory, results included, and "difference" the larger of the gradients' relative differences. A library that
cannot be imported has no row; Tevatron and open_clip are then the tests' stand-ins, and say so.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "tests"))  # the stand-ins

import peer_stand_ins

from benches.machine import device_name, peak_mib

Loss = Callable[..., Tensor]
Inputs = list[Tensor]


@dataclass
class Pair:
    """A library's loss and ours, on the same inputs."""

    name: str
    before: Loss
    after: Loss
    inputs: Inputs


@dataclass
class Row:
    """A pair's line of the result."""

    name: str
    difference: float
    before_ms: float
    after_ms: float
    before_mib: float | None
    after_mib: float | None


def sentence_transformers(columns: Inputs, rows: int) -> list[Pair]:
    ours: Any = import_module("fastdense.integrations.sentence_transformers")

    def plain(loss: Any) -> Loss:
        return lambda *columns: loss.compute_loss_from_embeddings(list(columns), None)

    def cached(loss: Any) -> Loss:
        return lambda *columns: loss.calculate_loss([list(column.split(rows)) for column in columns])

    kinds = (ours.losses.MultipleNegativesRankingLoss, ours.FusedMultipleNegativesRankingLoss)
    before, after = (plain(kind(nn.Identity())) for kind in kinds)
    pairs = [Pair("sentence-transformers", before, after, columns)]
    model = nn.Sequential(nn.Identity())  # the constructor looks at its first module
    kinds = (ours.losses.CachedMultipleNegativesRankingLoss, ours.CachedFusedMultipleNegativesRankingLoss)
    before, after = (cached(kind(model, mini_batch_size=rows)) for kind in kinds)
    return [*pairs, Pair(f"sentence-transformers cached, {rows} rows", before, after, columns)]


def grad_cache(query: Tensor, passage: Tensor) -> list[Pair]:
    ours: Any = import_module("fastdense.integrations.grad_cache")
    negatives = len(passage) // len(query) - 1
    before, after = (kind(negatives) for kind in (ours.peer.SimpleContrastiveLoss, ours.SimpleContrastiveLoss))
    return [Pair("GradCache", before, after, [query, passage])]


def open_clip(query: Tensor, positive: Tensor) -> list[Pair]:
    peer = peer_stand_ins.import_open_clip()
    from fastdense.integrations import open_clip as ours

    name = "open_clip (stand-in)" if peer.ClipLoss is peer_stand_ins.ClipLoss else "open_clip"
    return [Pair(name, peer.ClipLoss(), ours.ClipLoss(), [query, positive, torch.tensor(20.0, device=query.device)])]


def tevatron(query: Tensor, passage: Tensor) -> list[Pair]:
    from fastdense.integrations.tevatron import fused

    class Passes(peer_stand_ins.EncoderModel):
        """An encoder whose input is its representation."""

        def encode_query(self, qry: dict[str, Tensor]) -> Tensor:
            return qry["reps"]

        encode_passage = encode_query

    def loss(model: nn.Module) -> Loss:
        return lambda query, passage: model(query={"reps": query}, passage={"reps": passage}).loss

    before, after = (loss(kind(temperature=0.05)) for kind in (Passes, fused(Passes)))
    return [Pair("Tevatron's forward (stand-in)", before, after, [query, passage])]


def pairs(queries: int, passages: int, width: int, dtype: torch.dtype, device: str) -> list[Pair]:
    """Every library's pair. Unit vectors, each positive at a cosine of about 0.3 to its query."""
    torch.manual_seed(0)
    query, *columns = (F.normalize(torch.randn(queries, width), dim=1) for _ in range(passages + 1))
    columns[0] = F.normalize(0.3 * query + 0.95 * columns[0], dim=1)
    query, *columns = (column.to(device, dtype) for column in (query, *columns))
    passage = torch.stack(columns, dim=1).flatten(0, 1)  # row-major: a query's passages together
    scaled = query * 20  # these libraries have no scale
    providers = (
        lambda: sentence_transformers([query, *columns], 32),
        lambda: grad_cache(scaled, passage),
        lambda: open_clip(query, columns[0]),
        lambda: tevatron(query, passage),
    )
    found: list[Pair] = []
    for provider in providers:
        try:
            found += provider()
        except ModuleNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def gradients(loss: Loss, inputs: Inputs) -> Inputs:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    return list(torch.autograd.grad(loss(*leaves), leaves))


def seconds(loss: Loss, inputs: Inputs, device: str) -> float:
    start = time.perf_counter()
    gradients(loss, inputs)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(pair: Pair, repeats: int, device: str) -> Row:
    before, after = (gradients(loss, pair.inputs) for loss in (pair.before, pair.after))
    difference = max(float((b - a).norm() / b.norm()) for b, a in zip(before, after, strict=True))
    del before, after
    peaks = [peak_mib(partial(gradients, loss, pair.inputs), device) for loss in (pair.before, pair.after)]
    times = [[seconds(loss, pair.inputs, device) * 1e3 for loss in (pair.before, pair.after)] for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return Row(pair.name, difference, *medians, *peaks)


def show(row: Row) -> str:
    memory = "" if row.before_mib is None else f"{row.before_mib:8.0f} -> {row.after_mib:6.0f} MiB"
    times = f"{row.before_ms:9.1f} -> {row.after_ms:8.1f} ms  x {row.before_ms / row.after_ms:5.2f}"
    return f"  {row.name:36}{times}{memory:>24}   difference {row.difference:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--passages", type=int, default=2, help="passages a query")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    shape = (arguments.queries, arguments.passages, arguments.width)
    found = pairs(*shape, getattr(torch, arguments.dtype), arguments.device)
    rows = [measure(pair, arguments.repeats, arguments.device) for pair in found]
    print(f"{arguments.queries} queries x {arguments.passages} passages x {arguments.width}, {arguments.dtype}")
    print("\n".join(map(show, rows)))
    if arguments.output:
        settings = {name: value for name, value in vars(arguments).items() if name != "output"}
        report = {"torch": torch.__version__, "machine": device_name(arguments.device), **settings}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
