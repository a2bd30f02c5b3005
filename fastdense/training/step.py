"""One contrastive step: representations, loss and gradients, with or without the gradient cache and other ranks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdense.distributed import PassageExchange
from fastdense.grad_cache import GraphBudget, attach_gradients, cached_forward
from fastdense.loss import ContrastiveResult, contrastive_loss_and_grad
from fastdense.loss.distillation import distillation_loss_and_grad
from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.loss.prefix_walk import prefix_loss_and_grad
from fastdense.modeling.encoder import Retriever
from fastdense.training.distinct import SIDES, DistinctRows, HostRows

LossAndGrad = Callable[..., ContrastiveResult]
_GUIDE_TOKENS = 16384  # of a chunk without a gradient cache, which says how many


@dataclass(frozen=True)
class CacheSettings:
    """How the gradient cache cuts a batch into chunks, and what it keeps of them.

    Attributes:
        max_tokens: most padded tokens of a chunk.
        query_rows, passage_rows: most queries and passages in a chunk; None for as many as ``max_tokens`` allows.
        graphs: memory for graphs of the first pass.
    """

    max_tokens: int | None
    query_rows: int | None = None
    passage_rows: int | None = None
    graphs: GraphBudget | None = None


@dataclass(frozen=True)
class Prefixes:
    """Which prefixes of the representations have a loss, and what each counts; weights of None are 1 each."""

    dims: Sequence[int]
    weights: Sequence[float] | None = None


@dataclass(frozen=True)
class Distillation:
    """How the scores of a teacher are learned from: what divides them, and what their divergence counts in the loss."""

    temperature: float
    weight: float = 1.0


class StepResult(NamedTuple):
    """What a step tells the trainer."""

    loss: Tensor
    """mean over the batch's queries, attached to the model"""
    accuracy: Tensor
    """share of the queries whose target scores highest"""
    tokens: int
    """that were encoded, without padding"""
    padded_tokens: int
    """that were encoded, with padding"""


class _Encoded(NamedTuple):
    query: Tensor
    passage: Tensor
    padded_tokens: int


class _Scored(NamedTuple):
    loss: Tensor
    query_grad: Tensor
    passage_grad: Tensor
    correct: Tensor
    share: float
    """of this rank's queries in the mean over ranks, times their number: 1 where all ranks have as many"""


@dataclass(frozen=True)
class ContrastiveStep:
    """Turns a batch into a loss whose ``backward()`` reaches every parameter.

    The loss and the gradients of the representations come out of one call, so that the plain, the cached and the
    distributed step share it; what differs is where the representations come from and where their gradients go.
    Equal queries are encoded once, and so are equal passages: see :class:`DistinctRows`.

    Attributes:
        scale: factor on the dot products, 1 / temperature.
        label_smoothing: share of the target's probability that is spread over all passages.
        mask_duplicates: leave further copies of a query's positive out of its negatives.
        prefixes: the loss is the sum of theirs, of vectors scaled to length 1 where the model's are; None for the
            whole representations.
        false_negatives: which passages are too good to be a query's negatives; None to keep all.
        guide: a retriever that is not trained, whose scores ``false_negatives`` looks at in the place of the model's.
        distillation: learn from the batch's ``teacher_score``, too; None not to.
        cache: chunks of the gradient cache; None for the plain step.
        negatives_x_device: score this rank's queries against the passages of all ranks.
    """

    scale: float
    label_smoothing: float = 0.0
    mask_duplicates: bool = False
    prefixes: Prefixes | None = None
    false_negatives: FalseNegativeFilter | None = None
    guide: nn.Module | None = None
    distillation: Distillation | None = None
    cache: CacheSettings | None = None
    negatives_x_device: bool = False

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> StepResult:
        """Loss and accuracy of a batch; averaged over ranks both are those of the global batch.

        Args:
            model: the retriever as the trainer wraps it.
            batch: what :class:`fastdense.data.collation.Collator` returns, on the model's device. Without the ``rows``
                of a :class:`fastdense.training.distinct.DescribingCollator` a GPU is waited for.
        """
        rows = batch.get("rows") or {side: HostRows.of(batch[side]) for side in SIDES}
        query, passage = (DistinctRows(batch[side], rows[side]) for side in SIDES)
        encoded = self._encode(model, query, passage)
        score = self._score_all_ranks if self.negatives_x_device else self._score
        prefixes = self._prefix_settings(model)
        vectors = query.with_copies(encoded.query.detach()), passage.with_copies(encoded.passage.detach())
        scored = score(*vectors, batch, self._loss_and_grad(prefixes), self._guided(query, passage))
        if self.distillation is not None:
            scored = self._taught(scored, self.distillation, *vectors, batch, prefixes)
        gradients = query.summed(scored.query_grad), passage.summed(scored.passage_grad)
        return StepResult(
            attach_gradients(scored.loss, (encoded.query, encoded.passage), gradients),
            scored.correct.float().mean(),
            sum(query.lengths) + sum(passage.lengths),
            encoded.padded_tokens,
        )

    def _encode(self, model: nn.Module, query: DistinctRows, passage: DistinctRows) -> _Encoded:
        if self.cache is None:
            query_vectors, passage_vectors = model(query=query.inputs, passage=passage.inputs)
            return _Encoded(query_vectors, passage_vectors, query.padded_tokens + passage.padded_tokens)
        cached = cached_forward(
            model,
            query.inputs,
            passage.inputs,
            query_chunk_rows=self.cache.query_rows,
            passage_chunk_rows=self.cache.passage_rows,
            max_tokens=self.cache.max_tokens,
            one_encoder=_is_tied(model),
            query_lengths=query.lengths,
            passage_lengths=passage.lengths,
            graphs=self.cache.graphs,
        )
        return _Encoded(cached.query, cached.passage, cached.padded_tokens)

    def _guided(self, query: DistinctRows, passage: DistinctRows) -> tuple[Tensor, Tensor] | None:
        """The guide's representations of all rows, encoded in chunks, of which nothing is kept."""
        if self.guide is None:
            return None
        limit = self.cache.max_tokens if self.cache is not None else None
        with torch.no_grad():
            encoded = cached_forward(
                self.guide,
                query.inputs,
                passage.inputs,
                max_tokens=limit or _GUIDE_TOKENS,
                one_encoder=_is_tied(self.guide),
                query_lengths=query.lengths,
                passage_lengths=passage.lengths,
            )
        return query.with_copies(encoded.query), passage.with_copies(encoded.passage)

    def _score(
        self,
        query: Tensor,
        passage: Tensor,
        batch: Mapping[str, Any],
        loss_and_grad: LossAndGrad,
        guide: tuple[Tensor, Tensor] | None,
    ) -> _Scored:
        passage_id = batch["passage_id"] if self.mask_duplicates else None
        guided = {} if guide is None else {"guide": guide}
        result = loss_and_grad(query, passage, batch["target"], passage_id=passage_id, **guided)
        return _Scored(result.loss, result.query_grad, result.passage_grad, result.correct, 1.0)

    def _score_all_ranks(
        self,
        query: Tensor,
        passage: Tensor,
        batch: Mapping[str, Any],
        loss_and_grad: LossAndGrad,
        guide: tuple[Tensor, Tensor] | None,
    ) -> _Scored:
        exchange = PassageExchange(len(query), len(passage), query.device)
        passage_id = exchange.gather(batch["passage_id"]) if self.mask_duplicates else None
        target = batch["target"] + exchange.offset
        guided = {} if guide is None else {"guide": (guide[0], exchange.gather(guide[1]))}
        result = loss_and_grad(query, exchange.gather(passage), target, passage_id=passage_id, **guided)
        share = exchange.loss_weight
        passage_grad = exchange.return_gradients(result.passage_grad * share)
        return _Scored(result.loss * share, result.query_grad * share, passage_grad, result.correct, share)

    def _taught(
        self,
        scored: _Scored,
        distillation: Distillation,
        query: Tensor,
        passage: Tensor,
        batch: Mapping[str, Any],
        prefixes: dict[str, Any],
    ) -> _Scored:
        """Add the divergence from the teacher, which looks at each query's own passages: they are all on this rank."""
        settings = {**prefixes, "scale": self.scale, "temperature": distillation.temperature}
        result = distillation_loss_and_grad(query, passage, batch["target"], batch["teacher_score"], **settings)
        weight = distillation.weight * scored.share
        return scored._replace(
            loss=scored.loss + weight * result.loss,
            query_grad=scored.query_grad + weight * result.query_grad,
            passage_grad=scored.passage_grad + weight * result.passage_grad,
        )

    def _prefix_settings(self, model: nn.Module) -> dict[str, Any]:
        if self.prefixes is None:
            return {}
        return {
            "dims": self.prefixes.dims,
            "dim_weights": self.prefixes.weights,
            "renormalize": _retriever(model).query_encoder.normalize,
        }

    def _loss_and_grad(self, prefixes: dict[str, Any]) -> LossAndGrad:
        settings: dict[str, Any] = {"scale": self.scale, "label_smoothing": self.label_smoothing}
        if not prefixes and self.false_negatives is None:
            return partial(contrastive_loss_and_grad, **settings)
        return partial(prefix_loss_and_grad, **settings, **prefixes, false_negatives=self.false_negatives)


def _retriever(model: nn.Module) -> Retriever:
    """The retriever, which may be wrapped by others."""
    return next(module for module in model.modules() if isinstance(module, Retriever))


def _is_tied(model: nn.Module) -> bool:
    """Whether queries and passages go through one encoder; the retriever may be wrapped by others."""
    return any(isinstance(module, Retriever) and module.tied for module in model.modules())
