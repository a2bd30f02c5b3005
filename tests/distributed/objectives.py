"""The trainer's step with every objective beyond the plain loss, for ``worker.py``, on a small float64 retriever.

In float32 the sums of the prefixes' gradients would differ by more than the plain loss's, in the order of their terms.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.modeling.encoder import Encoder, Retriever
from fastdense.training.step import CacheSettings, ContrastiveStep, Distillation, Prefixes


class Backbone(nn.Module):
    config = SimpleNamespace(hidden_size=8)

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(40, 12), nn.Linear(12, 8)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=torch.tanh(self.hidden(self.embedding(input_ids))))


def make_retriever(tied: bool, seed: int = 5) -> Retriever:
    torch.manual_seed(seed)
    query = Encoder(Backbone(), "mean", normalize=True)  # type: ignore[arg-type]
    passage = query if tied else Encoder(Backbone(), "mean", normalize=True)  # type: ignore[arg-type]
    return Retriever(query, passage).double()


def make_step(*, cached: bool, ranks: bool, guided: bool) -> ContrastiveStep:
    return ContrastiveStep(
        scale=4.0,
        label_smoothing=0.1,
        mask_duplicates=True,
        prefixes=Prefixes((8, 5, 2), (1.0, 0.5, 2.0)),
        false_negatives=FalseNegativeFilter(absolute=-0.1),
        guide=make_retriever(tied=False, seed=6).eval() if guided else None,
        distillation=Distillation(temperature=1.5, weight=2.0),
        cache=CacheSettings(None, 2, 4) if cached else None,
        negatives_x_device=ranks,
    )


def loss(step: ContrastiveStep, model: nn.Module, rows: Any, passages_a_query: int) -> Tensor:
    target = torch.arange(len(rows.teacher_score)) * passages_a_query
    names = ("query", "passage", "passage_id", "teacher_score")
    return step(model, {"target": target, **{name: getattr(rows, name) for name in names}}).loss
