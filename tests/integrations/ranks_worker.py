"""One rank of the drop-ins' distributed test: ``ranks_worker.py RANK WORLD DIRECTORY``.

Each case computes a loss and the gradients of this rank's tensors by a library's class and by ours, on the same ranks,
and writes the larger relative error to ``DIRECTORY/RANK.json``.
"""

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradcache.loss as grad_cache_peer
import peer_stand_ins
import torch
import torch.distributed as dist
from torch import Tensor, nn

clip_peer = peer_stand_ins.import_open_clip()

from fastdense.integrations import grad_cache, open_clip  # noqa: E402
from fastdense.integrations import sentence_transformers as st  # noqa: E402
from fastdense.integrations.tevatron import fused  # noqa: E402

Loss = Callable[..., Tensor]
Case = tuple[Loss, Loss, Sequence[Tensor]]
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


def larger_error(ours: Loss, theirs: Loss, inputs: Sequence[Tensor]) -> float:
    answers = []
    for loss in (ours, theirs):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        value = loss(*leaves)
        value.backward()
        answers.append([value.detach(), *(leaf.grad for leaf in leaves)])
    return max(float((one - other).norm() / other.norm()) for one, other in zip(*answers, strict=True))


def cases(rank: int, world: int) -> dict[str, Case]:
    torch.manual_seed(rank)  # each rank its own rows
    query, positive, negative = (torch.randn(5, 8) for _ in range(3))
    passage, scale = torch.randn(10, 8), torch.tensor(3.0)
    target = torch.arange(5 * world).flip(0) * 2  # the passages of other ranks
    found: dict[str, Case] = {}

    for name, options in (("one direction", {}), ("both directions", SYMMETRIC)):
        found[f"sentence-transformers, {name}"] = (*sentence_transformers(options), (query, positive, negative))
        found[f"sentence-transformers cached, {name}"] = (*cached(options), (query, positive, negative))

    for options in ({}, {"reduction": "sum"}, {"target": target}):
        ours, theirs = grad_cache.DistributedContrastiveLoss(1), grad_cache_peer.DistributedContrastiveLoss(1)
        found[f"GradCache {options}"] = (call(ours, **options), call(theirs, **options), (query, passage))
    for scaled in (True, False):
        kind = peer_stand_ins.TevatronDistributedContrastiveLoss
        ours, theirs = fused(kind)(scale_loss=scaled), kind(scale_loss=scaled)
        found[f"Tevatron's copy, scale_loss={scaled}"] = (ours, theirs, (query, passage))
    for version, options in (("v1", {"negatives_x_device": True}), ("v2", {"is_ddp": True, "temperature": 0.1})):
        encode = (tevatron(kind(**options)) for kind in (fused(Passes), Passes))
        found[f"Tevatron {version}"] = (*encode, (query, passage))

    for local in (False, True):
        for gather in (False, True):
            options = {"local_loss": local, "gather_with_grad": gather, "rank": rank, "world_size": world}
            ours, theirs = open_clip.ClipLoss(**options), clip_peer.ClipLoss(**options)
            found[f"open_clip, local_loss={local}, gather_with_grad={gather}"] = (
                ours,
                theirs,
                (query, positive, scale),
            )
    return found


def call(loss: Any, **options: Any) -> Loss:
    return lambda *tensors: loss(*tensors, **options)


def sentence_transformers(options: dict[str, Any]) -> list[Loss]:
    kinds = (st.FusedMultipleNegativesRankingLoss, st.losses.MultipleNegativesRankingLoss)
    losses = [kind(nn.Identity(), gather_across_devices=True, **options) for kind in kinds]
    return [lambda *columns, loss=loss: loss.compute_loss_from_embeddings(list(columns), None) for loss in losses]


def cached(options: dict[str, Any]) -> list[Loss]:
    kinds = (st.CachedFusedMultipleNegativesRankingLoss, st.losses.CachedMultipleNegativesRankingLoss)
    model = nn.Sequential(nn.Identity())  # the constructor looks at its first module
    losses = [kind(model, gather_across_devices=True, mini_batch_size=2, **options) for kind in kinds]
    return [lambda *columns, loss=loss: loss.calculate_loss([list(c.split(2)) for c in columns]) for loss in losses]


class Passes(peer_stand_ins.EncoderModel):
    """An encoder whose input is its representation."""

    def encode_query(self, qry: dict[str, Tensor]) -> Tensor:
        return qry["reps"]

    encode_passage = encode_query


def tevatron(model: nn.Module) -> Loss:
    return lambda query, passage: model(query={"reps": query}, passage={"reps": passage}).loss


def main() -> None:
    rank, world, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    errors = {name: larger_error(*case) for name, case in cases(rank, world).items()}
    (directory / f"{rank}.json").write_text(json.dumps(errors))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
