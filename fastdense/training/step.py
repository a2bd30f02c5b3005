"""One contrastive step: representations, loss and gradients, with or without the gradient cache and other ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastdense.distributed import PassageExchange
from fastdense.grad_cache import attach_gradients, cached_forward
from fastdense.loss import ContrastiveResult, contrastive_loss_and_grad


@dataclass(frozen=True)
class ContrastiveStep:
    """Turns a batch into a loss whose ``backward()`` reaches every parameter.

    The loss and the gradients of the representations come out of one call, so that the plain, the cached and the
    distributed step share it; what differs is where the representations come from and where their gradients go.

    Attributes:
        scale: factor on the dot products, 1 / temperature.
        label_smoothing: share of the target's probability that is spread over all passages.
        mask_duplicates: leave further copies of a query's positive out of its negatives.
        chunk_rows: most (queries, passages) in a chunk of the gradient cache; None for the plain step.
        negatives_x_device: score this rank's queries against the passages of all ranks.
    """

    scale: float
    label_smoothing: float = 0.0
    mask_duplicates: bool = False
    chunk_rows: tuple[int, int] | None = None
    negatives_x_device: bool = False

    def __call__(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Loss and accuracy of a batch.

        Args:
            model: the retriever as the trainer wraps it.
            batch: what :class:`fastdense.data.collation.Collator` returns, on the model's device.

        Returns:
            The mean loss of the batch's queries, attached to the model, and the share of them whose target scores
            highest. Averaged over ranks both are those of the global batch.
        """
        query, passage = self._encode(model, batch)
        score = self._score_all_ranks if self.negatives_x_device else self._score
        loss, query_grad, passage_grad, correct = score(query.detach(), passage.detach(), batch)
        return attach_gradients(loss, (query, passage), (query_grad, passage_grad)), correct.float().mean()

    def _encode(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.chunk_rows is None:
            return model(query=batch["query"], passage=batch["passage"])
        query_rows, passage_rows = self.chunk_rows
        cached = cached_forward(
            model, batch["query"], batch["passage"], query_chunk_rows=query_rows, passage_chunk_rows=passage_rows
        )
        return cached.query, cached.passage

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
