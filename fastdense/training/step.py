"""One contrastive step: representations, loss and gradients, with or without the gradient cache and other ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastdense.distributed import PassageExchange
from fastdense.grad_cache import GraphBudget, attach_gradients, cached_forward
from fastdense.loss import ContrastiveResult, contrastive_loss_and_grad
from fastdense.modeling.encoder import Retriever
from fastdense.training.distinct import SIDES, DistinctRows, HostRows


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
        cache: chunks of the gradient cache; None for the plain step.
        negatives_x_device: score this rank's queries against the passages of all ranks.
    """

    scale: float
    label_smoothing: float = 0.0
    mask_duplicates: bool = False
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
        vectors = query.with_copies(encoded.query.detach()), passage.with_copies(encoded.passage.detach())
        loss, query_grad, passage_grad, correct = score(*vectors, batch)
        gradients = query.summed(query_grad), passage.summed(passage_grad)
        return StepResult(
            attach_gradients(loss, (encoded.query, encoded.passage), gradients),
            correct.float().mean(),
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

    def _score(self, query: Tensor, passage: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result = self._result(query, passage, batch["target"], batch["passage_id"])
        return result.loss, result.query_grad, result.passage_grad, result.correct

    def _score_all_ranks(
        self, query: Tensor, passage: Tensor, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        exchange = PassageExchange(len(query), len(passage), query.device)
        passage_id = exchange.gather(batch["passage_id"]) if self.mask_duplicates else None
        result = self._result(query, exchange.gather(passage), batch["target"] + exchange.offset, passage_id)
        share = exchange.loss_weight  # 1 where all ranks have as many queries
        passage_grad = exchange.return_gradients(result.passage_grad * share)
        return result.loss * share, result.query_grad * share, passage_grad, result.correct

    def _result(self, query: Tensor, passage: Tensor, target: Tensor, passage_id: Tensor | None) -> ContrastiveResult:
        return contrastive_loss_and_grad(
            query,
            passage,
            target,
            scale=self.scale,
            passage_id=passage_id if self.mask_duplicates else None,
            label_smoothing=self.label_smoothing,
        )


def _is_tied(model: nn.Module) -> bool:
    """Whether queries and passages go through one encoder; the retriever may be wrapped by others."""
    return any(isinstance(module, Retriever) and module.tied for module in model.modules())
