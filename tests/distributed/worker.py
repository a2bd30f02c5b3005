"""One rank of the distributed tests: ``worker.py RANK WORLD DIRECTORY CASE``.

Each case takes two optimizer steps on W ranks and the same two steps in one process over the global batch, and writes
what came out to ``DIRECTORY/RANK.json``.
"""

import contextlib
import datetime
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from collectives import collectives_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastdense.distributed import PassageExchange
from fastdense.grad_cache import GraphBudget, attach_gradients, cached_forward
from fastdense.loss import contrastive_loss_and_grad

PASSAGES_A_QUERY = 3
ROWS = {"even": [4, 4, 4], "uneven": [2, 7, 1]}
Batch = dict[str, Tensor]


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 12)
        self.register_buffer("offset", torch.full((12,), 0.1))  # DistributedDataParallel broadcasts buffers
        self.hidden, self.output = nn.Linear(12, 12), nn.Linear(12, 8)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = torch.tanh(self.hidden(self.embedding(inputs["input_ids"]) + self.offset))
        return self.output((hidden * mask).sum(1) / mask.sum(1))


class Retriever(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.query_encoder = Encoder()
        self.passage_encoder = self.query_encoder if tied else Encoder()

    def forward(
        self, query: Mapping[str, Tensor] | None = None, passage: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        return (
            None if query is None else self.query_encoder(query),
            None if passage is None else self.passage_encoder(passage),
        )


@dataclass
class Rows:
    """A batch, or one rank's part of it."""

    query: Batch
    passage: Batch
    passage_id: Tensor
    teacher_score: Tensor

    @classmethod
    def random(cls, queries: int, seed: int) -> "Rows":
        torch.manual_seed(seed)
        # Few different ids, so that some passages are duplicates of another query's target.
        ids = torch.randint(0, 2 * queries, (queries * PASSAGES_A_QUERY,))
        batches = random_batch(queries, 6), random_batch(queries * PASSAGES_A_QUERY, 9)
        return cls(*batches, ids, torch.randn(queries, PASSAGES_A_QUERY))

    def part(self, rows: list[int], rank: int) -> "Rows":
        start, end = sum(rows[:rank]), sum(rows[: rank + 1])
        passages = slice(start * PASSAGES_A_QUERY, end * PASSAGES_A_QUERY)
        return Rows(
            {name: tensor[start:end] for name, tensor in self.query.items()},
            {name: tensor[passages] for name, tensor in self.passage.items()},
            self.passage_id[passages],
            self.teacher_score[start:end],
        )


def random_batch(rows: int, length: int) -> Batch:
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1))).long()
    return {"input_ids": torch.randint(0, 40, (rows, length)) * mask, "attention_mask": mask}


def encode(
    model: nn.Module, rows: Rows, cached: bool, one_encoder: bool = False, graphs: GraphBudget | None = None
) -> tuple[Tensor, Tensor]:
    if cached:
        limits = {"query_chunk_rows": 2, "passage_chunk_rows": 4, "one_encoder": one_encoder, "graphs": graphs}
        representations = cached_forward(model, rows.query, rows.passage, **limits)
        return representations.query, representations.passage
    return model(query=rows.query, passage=rows.passage)


def shared_loss(rows: Rows, query: Tensor, passage: Tensor) -> Tensor:
    """This rank's loss, its queries scored against every rank's passages."""
    exchange = PassageExchange(len(query), len(passage), query.device)
    target = torch.arange(len(query)) * PASSAGES_A_QUERY + exchange.offset
    passage_id = exchange.gather(rows.passage_id)
    result = contrastive_loss_and_grad(query.detach(), exchange.gather(passage), target, passage_id=passage_id)
    weight = exchange.loss_weight
    passage_grad = exchange.return_gradients(result.passage_grad * weight)
    return attach_gradients(result.loss * weight, (query, passage), (result.query_grad * weight, passage_grad))


def single_process_loss(rows: Rows, query: Tensor, passage: Tensor) -> Tensor:
    result = contrastive_loss_and_grad(query.detach(), passage.detach(), passage_id=rows.passage_id)
    return attach_gradients(result.loss, (query, passage), (result.query_grad, result.passage_grad))


def wrap(model: nn.Module, **options: bool) -> tuple[DistributedDataParallel, list[int]]:
    """The model under DistributedDataParallel, and a list that gets the size of each gradient reduction."""
    reductions: list[int] = []

    def count(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        reductions.append(bucket.buffer().numel())
        summed = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return summed.then(lambda future: future.value()[0] / dist.get_world_size())

    wrapped = DistributedDataParallel(model, **options)
    wrapped.register_comm_hook(None, count)
    return wrapped, reductions


@contextlib.contextmanager
def accumulating(model: DistributedDataParallel, last: bool) -> Iterator[None]:
    with contextlib.nullcontext() if last else model.no_sync():
        yield


Loss = Callable[[nn.Module, Rows], Tensor]


def plain_objective(options: list[str]) -> tuple[Callable[[bool], nn.Module], Loss, Loss]:
    """How to make a retriever, and its loss in one process and on W ranks."""
    how = {"cached": "cached" in options, "one_encoder": "one" in options}
    graphs = GraphBudget(1.0) if "kept" in options else None
    return (
        Retriever,
        lambda model, rows: single_process_loss(rows, *encode(model, rows, cached=False)),
        lambda model, rows: shared_loss(rows, *encode(model, rows, **how, graphs=graphs)),
    )


def every_objective(options: list[str]) -> tuple[Callable[[bool], nn.Module], Loss, Loss]:
    """The same with prefixes, a false-negative filter and a teacher, by the trainer's step."""
    import objectives  # transformers takes seconds

    alone = objectives.make_step(cached=False, ranks=False, guided="guided" in options)
    shared = objectives.make_step(cached="cached" in options, ranks=True, guided="guided" in options)
    return (
        objectives.make_retriever,
        lambda model, rows: objectives.loss(alone, model, rows, PASSAGES_A_QUERY),
        lambda model, rows: objectives.loss(shared, model, rows, PASSAGES_A_QUERY),
    )


def compare(case: str, rank: int, world: int) -> dict[str, object]:
    """Two steps on W ranks beside two steps in one process."""
    options = case.split("-")
    tied, micro_batches = "tied" in options, 2 if "accumulated" in options else 1
    counts = ROWS["uneven" if "uneven" in options else "even"][:world]
    make, alone_loss, ranks_loss = (every_objective if "objectives" in options else plain_objective)(options)
    alone, shared = make(tied), make(tied)
    model, reductions = wrap(shared, find_unused_parameters="unused" in options)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in (alone, model)]
    losses = []
    for step in range(2):
        for micro_batch in range(micro_batches):
            rows = Rows.random(sum(counts), seed=10 * step + micro_batch)
            expected = alone_loss(alone, rows)
            (expected / micro_batches).backward()
            part = rows.part(counts, rank)
            with accumulating(model, micro_batch == micro_batches - 1):
                loss = ranks_loss(model, part)
                (loss / micro_batches).backward()
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            losses.append((mean.item() / world, expected.item()))
        error = relative_error(shared, alone)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    parameters = sum(parameter.numel() for parameter in shared.parameters())
    return {"losses": losses, "error": error, "reductions": reductions, "parameters": parameters}


def relative_error(actual: nn.Module, expected: nn.Module) -> float:
    """Largest error of a gradient, beside the largest gradient."""
    gradients = [(one.grad, other.grad) for one, other in zip(actual.parameters(), expected.parameters(), strict=True)]
    largest = max(other.abs().max() for _, other in gradients)
    return float(max((one - other).abs().max() for one, other in gradients) / largest)


def collectives(case: str, rank: int, world: int) -> dict[str, object]:
    """Of an accumulated batch and of a step's last one, once DistributedDataParallel has sorted its buckets."""
    model = DistributedDataParallel(Retriever(tied=True), broadcast_buffers=False)
    part = Rows.random(4 * world, seed=1).part([4] * world, rank)
    found: dict[str, object] = {}
    for _step in range(3):
        for name in ("accumulated", "last"):
            with accumulating(model, last=name == "last"):
                found[name] = collectives_of(
                    lambda: shared_loss(part, *encode(model, part, "cached" in case)).backward()
                )
    return found


def forward_alone_in_no_sync(_case: str, rank: int, world: int) -> dict[str, object]:
    model, reductions = wrap(Retriever(tied=True))
    part = Rows.random(4 * world, seed=1).part([4] * world, rank)
    with model.no_sync():
        query, passage = encode(model, part, cached=True)
    (query.sum() + passage.sum()).backward()
    return {"reductions": reductions}


def exchange(_case: str, rank: int, world: int) -> dict[str, object]:
    rows = [2, 5, 3]
    own = torch.arange(rows[rank] * 2.0).view(-1, 2) + 100 * rank
    one = PassageExchange(rows[rank] + 1, rows[rank], torch.device("cpu"))
    gathered = one.gather(own)
    gradients = torch.arange(len(gathered) * 2.0).view(-1, 2) * 10**rank
    return {
        "passage_rows": one.passage_rows,
        "offset": one.offset,
        "loss_weight": one.loss_weight,
        "gathered": gathered.tolist(),
        "ids": one.gather(torch.full((rows[rank],), rank)).tolist(),
        "half": one.gather(own.bfloat16()).float().tolist(),
        "returned": one.return_gradients(gradients).tolist(),
    }


def empty_rank(_case: str, rank: int, _world: int) -> dict[str, object]:
    """One rank without queries: all say so, none waits."""
    try:
        PassageExchange(0 if rank == 1 else 4, 4, torch.device("cpu"))
    except ValueError as error:
        return {"message": str(error)}
    return {}


def killed(case: str, rank: int, world: int) -> dict[str, object]:
    """The last rank dies before its exchange, or before the last call of its replay."""
    model, _ = wrap(Retriever(tied=True))
    part = Rows.random(4 * world, seed=1).part([4] * world, rank)
    dying = rank == world - 1
    if dying and case == "killed-before-exchange":
        os.kill(os.getpid(), signal.SIGKILL)
    loss = shared_loss(part, *encode(model, part, cached=True))
    if dying:
        os.kill(os.getpid(), signal.SIGKILL)
    loss.backward()
    return {}


CASES = {
    "collectives-plain": collectives,
    "collectives-cached": collectives,
    "exchange": exchange,
    "empty-rank": empty_rank,
    "forward-alone-in-no-sync": forward_alone_in_no_sync,
    "killed-before-exchange": killed,
    "killed-before-reduction": killed,
}


def main() -> None:
    rank, world, directory, *cases = sys.argv[1:]
    rank, world = int(rank), int(world)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {case: CASES.get(case, compare)(case, rank, world) for case in cases}
    Path(directory, f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
