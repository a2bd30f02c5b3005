"""Time the loss part of a step on 1, 2 and 4 ranks (processes, gloo) at a fixed global batch.

    python -m benches ranks --output build/ranks.json

Each rank has one thread, gathers all passages, scores its own queries against them and returns the passages'
gradients. The loss is counted in CPU time, so that ranks may outnumber cores; the exchange in time that passes, from
the moment all ranks are there. Gradients are checked against one process over the global batch first. Figures are the
slowest rank's; medians.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benches.machine import device_name
from fastdense.distributed import PassageExchange
from fastdense.loss import ContrastiveResult, contrastive_loss_and_grad

SCALE = 20.0
WRONG = 1e-4  # relative error of a gradient


def measure(worlds: Sequence[int], shape: tuple[int, int, int], repeats: int, rounds: int) -> list[dict[str, Any]]:
    """A line for each number of ranks: medians of the rounds, in which all of them take turns."""
    found: dict[int, list[dict[str, float]]] = {world: [] for world in worlds}
    for _ in range(rounds):
        for world in worlds:
            found[world].append(_slowest(world, shape, repeats))
    lines: list[dict[str, Any]] = []
    for world, own in found.items():
        lines.append({"ranks": world, **{name: statistics.median(each[name] for each in own) for name in own[0]}})
        lines[-1]["loss_ratio"] = lines[-1]["loss_cpu_ms"] / lines[0]["loss_cpu_ms"]
    return lines


def _slowest(world: int, shape: tuple[int, int, int], repeats: int) -> dict[str, float]:
    """The largest figures of ``world`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (world, folder, shape, repeats), nprocs=world)
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    slowest = {name: max(own[name] for own in found) for name in found[0]}
    print(json.dumps({"ranks": world, **slowest}), flush=True)
    return slowest


def _rank(rank: int, world: int, folder: str, shape: tuple[int, int, int], repeats: int) -> None:
    """What one process finds, into ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    batch = _unit_vectors(*shape)
    query, passage = (_part(rows, rank, world) for rows in batch)
    error = _error(query, passage, batch, rank, world)
    turns = [_turn(query, passage) for _ in range(repeats)]
    exchange, loss = (statistics.median(column) * 1e3 for column in zip(*turns, strict=True))
    found = {"loss_cpu_ms": loss, "exchange_ms": exchange, "error": error}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _turn(query: Tensor, passage: Tensor) -> tuple[float, float]:
    """Seconds of the exchange and CPU seconds of the loss."""
    dist.barrier()
    start = time.perf_counter()
    exchange = PassageExchange(len(query), len(passage), query.device)
    everyone = exchange.gather(passage)
    gathered = time.perf_counter() - start
    begun = time.process_time()
    result = _loss(query, everyone, exchange)
    spent = time.process_time() - begun
    dist.barrier()
    start = time.perf_counter()
    exchange.return_gradients(result.passage_grad)
    return gathered + time.perf_counter() - start, spent


def _loss(query: Tensor, everyone: Tensor, exchange: PassageExchange) -> ContrastiveResult:
    passages = len(everyone) // (len(query) * dist.get_world_size())
    target = torch.arange(len(query)) * passages + exchange.offset
    return contrastive_loss_and_grad(query, everyone, target, scale=SCALE)


def _error(query: Tensor, passage: Tensor, batch: tuple[Tensor, Tensor], rank: int, world: int) -> float:
    """The larger relative difference of the two gradients from those of one process over the global batch."""
    exchange = PassageExchange(len(query), len(passage), query.device)
    result = _loss(query, exchange.gather(passage), exchange)
    mine = result.query_grad / world, exchange.return_gradients(result.passage_grad) / world
    whole = contrastive_loss_and_grad(*batch, scale=SCALE)
    exact = [_part(gradient, rank, world) for gradient in (whole.query_grad, whole.passage_grad)]
    error = max(float((one - other).norm() / other.norm()) for one, other in zip(mine, exact, strict=True))
    if error > WRONG:
        raise SystemExit(f"ranks: rank {rank} of {world} has other gradients than one process: error {error:.1e}")
    return error


def _unit_vectors(queries: int, passages: int, width: int) -> tuple[Tensor, Tensor]:
    """The same on every rank; the cosine of a query and its target is about 0.3."""
    generator = torch.Generator().manual_seed(0)
    query, passage = (F.normalize(torch.randn(n, width, generator=generator), dim=1) for n in (queries, passages))
    step = passages // queries
    passage[::step] = F.normalize(0.3 * query + 0.95 * passage[::step], dim=1)
    return query, passage


def _part(rows: Tensor, rank: int, world: int) -> Tensor:
    return rows.chunk(world)[rank].clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shape", default="4096x8192x768", help="queries x passages x width of the global batch")
    parser.add_argument("--repeats", type=int, default=5, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    queries, passages, width = map(int, arguments.shape.split("x"))
    if passages % queries or any(queries % world for world in arguments.ranks):
        parser.error("ranks must divide the queries, and the queries the passages")
    lines = measure(arguments.ranks, (queries, passages, width), arguments.repeats, arguments.rounds)
    report = {"machine": device_name("cpu"), "torch": torch.__version__, "dtype": "float32", "shape": arguments.shape}
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({**report, "results": lines}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
