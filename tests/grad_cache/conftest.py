"""A retriever of plain torch modules with attention and dropout, random batches, and a step that keeps every graph."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastdense.grad_cache import attach_gradients, plan_chunks

VOCABULARY, WIDTH = 50, 16
Batch = dict[str, Tensor]


class Encoder(nn.Module):
    def __init__(self, dropout: float, checkpointing: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.checkpointing = checkpointing

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        mask = inputs["attention_mask"]
        hidden = self.dropout(self.embedding(inputs["input_ids"]))
        if self.checkpointing and self.training:
            hidden = checkpoint(self.layer, hidden, src_key_padding_mask=mask == 0, use_reentrant=False)
        else:
            hidden = self.layer(hidden, src_key_padding_mask=mask == 0)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


class ToyRetriever(nn.Module):
    """Keeps every output in ``outputs``, to compare the first pass with the replay."""

    def __init__(self, tied: bool = True, dropout: float = 0.2, checkpointing: bool = False) -> None:
        super().__init__()
        self.query_encoder = Encoder(dropout, checkpointing)
        self.passage_encoder = self.query_encoder if tied else Encoder(dropout, checkpointing)
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        self.outputs: list[tuple[Tensor | None, Tensor | None]] = []

    def forward(
        self, query: Mapping[str, Tensor] | None = None, passage: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        outputs = (
            None if query is None else self.query_encoder(query),
            None if passage is None else self.passage_encoder(passage),
        )
        self.outputs.append(tuple(None if output is None else output.detach().clone() for output in outputs))
        return outputs


@pytest.fixture
def make_retriever() -> Callable[..., ToyRetriever]:
    def make(**options: object) -> ToyRetriever:
        torch.manual_seed(7)
        return ToyRetriever(**options)

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(rows: int, length: int, seed: int = 0, left: bool = False) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, length + 1, (rows,), generator=generator)
        mask = (torch.arange(length) < lengths[:, None]).long()
        if left:
            mask = mask.flip(1)
        ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator) * mask
        return {"input_ids": ids, "attention_mask": mask}

    return make


def loss_and_gradients(query: Tensor, passage: Tensor, scale: Tensor) -> tuple[Tensor, list[Tensor]]:
    """In-batch cross entropy in float32, every query's positive first among its passages."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in (query, passage, scale)]
    target = torch.arange(len(query)) * (len(passage) // len(query))
    with torch.autocast("cpu", enabled=False):
        scores = leaves[0] @ leaves[1].T * leaves[2]
        loss = nn.functional.cross_entropy(scores, target)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


@pytest.fixture
def attached_loss() -> Callable[..., Tensor]:
    """The loss of representations, with their gradients and that of the retriever's learnable scale attached."""

    def attached(retriever: ToyRetriever, query: Tensor, passage: Tensor) -> Tensor:
        scale = retriever.log_scale.exp()
        loss, gradients = loss_and_gradients(query, passage, scale)
        return attach_gradients(loss, (query, passage, scale), gradients)

    return attached


def taken(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch that is padded on the right, as wide as the longest of them."""
    width = int(batch["attention_mask"][rows].sum(1).max())
    return {name: tensor[rows, :width] for name, tensor in batch.items()}


@pytest.fixture
def chunked_with_graph() -> Callable[..., tuple[Tensor, Tensor]]:
    """The same model calls in the same order as the cached forward pass, with all graphs kept."""

    def two_streams(model, query, passage, query_chunk_rows, passage_chunk_rows, max_tokens):
        queries = plan_chunks(query["attention_mask"].sum(1), query_chunk_rows, max_tokens)
        passages = plan_chunks(passage["attention_mask"].sum(1), passage_chunk_rows, max_tokens)
        encoded_queries = [model(query=taken(query, rows))[0] for rows in queries[:-1]]
        encoded_passages = [model(passage=taken(passage, rows))[1] for rows in passages[:-1]]
        last = model(query=taken(query, queries[-1]), passage=taken(passage, passages[-1]))
        return (
            torch.cat([*encoded_queries, last[0]])[torch.cat(queries).argsort()],
            torch.cat([*encoded_passages, last[1]])[torch.cat(passages).argsort()],
        )

    def one_stream(model, query, passage, query_chunk_rows, passage_chunk_rows, max_tokens):
        sides = (query, passage)
        width = max(side["attention_mask"].shape[1] for side in sides)
        both = {
            name: torch.cat([nn.functional.pad(side[name], (0, width - side[name].shape[1])) for side in sides])
            for name in query
        }
        rows = torch.tensor([len(side["attention_mask"]) for side in sides])
        limits = torch.tensor([query_chunk_rows, passage_chunk_rows]).repeat_interleave(rows)
        chunks = plan_chunks(both["attention_mask"].sum(1), limits, max_tokens)
        encoded = torch.cat([model(passage=taken(both, chunk))[1] for chunk in chunks])
        query_vectors, passage_vectors = encoded[torch.cat(chunks).argsort()].split(rows.tolist())
        return query_vectors, passage_vectors

    def run(
        model: Callable[..., tuple[Tensor | None, Tensor | None]],
        query: Batch,
        passage: Batch,
        query_chunk_rows: int,
        passage_chunk_rows: int,
        max_tokens: int | None = None,
        one_encoder: bool = False,
    ) -> tuple[Tensor, Tensor]:
        run = one_stream if one_encoder else two_streams
        return run(model, query, passage, query_chunk_rows, passage_chunk_rows, max_tokens)

    return run
