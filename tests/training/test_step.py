"""The cached step against the plain one, copies and kept graphs included."""

import inspect

import pytest
import torch
import torch.distributed as dist
from collectives import EXCHANGE, REDUCTION, collectives_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

from fastdense.data.collation import pad
from fastdense.grad_cache import GraphBudget
from fastdense.modeling.encoder import Encoder, Retriever
from fastdense.training.distinct import SIDES, HostRows
from fastdense.training.step import CacheSettings, ContrastiveStep


def make_retriever(tied: bool = True, dropout: float = 0.0, seed: int = 0) -> Retriever:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
    )
    first, second = (Encoder(BertModel(config).train(), "mean") for _ in range(2))
    return Retriever(first, first if tied else second)


def make_batch(copies: bool, queries: int = 6, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def text(longest: int) -> list[int]:
        length = int(torch.randint(1, longest, (), generator=generator))
        return torch.randint(1, 60, (length,), generator=generator).tolist()

    asked, passages = [text(9) for _ in range(queries)], [text(20) for _ in range(3 * queries)]
    if copies:
        asked[4] = asked[0]
        passages[5] = passages[9] = passages[0]
        passages[1] = asked[2]  # of another side: no copy
    numbers = {tuple(passage): i for i, passage in enumerate(passages)}
    return {
        "query": pad(asked, 0),
        "passage": pad(passages, 0),
        "target": torch.arange(0, 3 * queries, 3),
        "passage_id": torch.tensor([numbers[tuple(passage)] for passage in passages]),
    }


def run(step: ContrastiveStep, retriever: Retriever, batch: dict) -> dict[str, torch.Tensor]:
    retriever.zero_grad()
    torch.manual_seed(3)
    result = step(retriever, batch)
    result.loss.backward()
    gradients = {name: p.grad.clone() for name, p in retriever.named_parameters() if p.grad is not None}
    return {"loss": result.loss.detach(), "accuracy": result.accuracy, **gradients}


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    largest = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6 * float(largest))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("graphs", [0, 1e-4, 1], ids=["none", "some", "all"])
@pytest.mark.parametrize("limits", [(40, None, None), (None, 2, 5), (30, 4, 3)], ids=str)
@pytest.mark.parametrize("mask_duplicates", [False, True])
def test_cached_is_plain(tied, graphs, limits, mask_duplicates):
    retriever, batch = make_retriever(tied), make_batch(copies=True)
    cache = CacheSettings(*limits, graphs=GraphBudget(graphs))
    options = {"scale": 2.0, "mask_duplicates": mask_duplicates}
    expected = run(ContrastiveStep(**options), retriever, batch)
    for _ in range(2):  # the first step measures
        assert_close(run(ContrastiveStep(**options, cache=cache), retriever, batch), expected)


def test_copies_change_neither_loss_nor_gradients():
    """Against a step that is told of no copies, and encodes each of them."""
    retriever, batch = make_retriever(), make_batch(copies=True)
    rows = {side: HostRowsOf(batch[side], [*range(len(batch[side]["input_ids"]))]) for side in ("query", "passage")}
    for cache in (None, CacheSettings(40)):
        step = ContrastiveStep(2.0, cache=cache)
        assert_close(run(step, retriever, batch), run(step, retriever, {**batch, "rows": rows}))


class HostRowsOf:
    def __init__(self, inputs, first_copy):
        self.lengths, self.first_copy = inputs["attention_mask"].sum(1).tolist(), first_copy


def test_a_batch_in_one_chunk_is_the_plain_step_with_its_dropout():
    """Untied and in one chunk, queries and passages go through the model as in the plain step: sorted, but alike."""
    retriever, batch = make_retriever(tied=False, dropout=0.2), make_batch(copies=True)
    for side in ("query", "passage"):  # sorting must not move rows
        batch[side]["attention_mask"][:] = 1
    plain = run(ContrastiveStep(2.0), retriever, batch)
    for graphs in (None, GraphBudget(1.0)):
        assert_close(run(ContrastiveStep(2.0, cache=CacheSettings(None, graphs=graphs)), retriever, batch), plain)


def test_copies_share_their_dropout_and_other_sides_do_not():
    retriever, batch = make_retriever(dropout=0.5), make_batch(copies=True)
    seen = []
    retriever.register_forward_hook(lambda _module, _args, output: seen.append(output))
    ContrastiveStep(2.0)(retriever, batch)
    query, passage = seen[0]
    assert len(query) == 5
    assert len(passage) == 16
    assert not torch.equal(query[2], passage[1])  # one text on both sides


@pytest.mark.parametrize("tied", [True, False])
def test_padding_is_counted(tied):
    retriever, batch = make_retriever(tied), make_batch(copies=False)
    tokens = sum(int(batch[side]["attention_mask"].sum()) for side in ("query", "passage"))
    plain = ContrastiveStep(1.0)(retriever, batch)
    cached = ContrastiveStep(1.0, cache=CacheSettings(40))(retriever, batch)
    assert plain.tokens == cached.tokens == tokens
    assert plain.padded_tokens == sum(batch[side]["input_ids"].numel() for side in ("query", "passage"))
    assert tokens <= cached.padded_tokens < plain.padded_tokens


def test_a_tied_retriever_s_queries_and_passages_share_chunks():
    retriever, batch, calls = make_retriever(), make_batch(copies=False), []
    retriever.register_forward_pre_hook(lambda _module, _args, sides: calls.append(sides), with_kwargs=True)
    ContrastiveStep(1.0, cache=CacheSettings(80))(retriever, batch)
    assert all(sides.get("query") is None for sides in calls)
    assert sum(len(sides["passage"]["input_ids"]) for sides in calls) == 24
    assert all(sides["passage"]["input_ids"].numel() <= 80 for sides in calls)


@pytest.fixture
def one_rank(tmp_path):
    """A process group of this process alone, which calls what several would call."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("cache", [None, CacheSettings(40)], ids=["plain", "cached"])
@pytest.mark.parametrize("mask_duplicates", [False, True])
def test_a_step_s_only_collectives_are_the_exchange_and_one_reduction(one_rank, cache, mask_duplicates):
    options = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"  # torch 2.10
    model, batch = DistributedDataParallel(make_retriever(), **{sync_buffers: False}), make_batch(copies=True)
    step = ContrastiveStep(2.0, mask_duplicates=mask_duplicates, cache=cache, negatives_x_device=True)
    for _ in range(3):  # in its second step DistributedDataParallel sorts its buckets
        found = collectives_of(lambda: step(model, batch).loss.backward())
    gathered = EXCHANGE["_allgather_base_"] - (not mask_duplicates)
    assert found == EXCHANGE | REDUCTION | {"_allgather_base_": gathered}


class WordBag(nn.Module):
    """Two encoders that ask the device nothing, which transformers' may do about an attention mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.ModuleDict({side: nn.Embedding(60, 16) for side in SIDES})
        self.dropout = nn.Dropout(0.1)

    def forward(self, query: dict | None = None, passage: dict | None = None) -> tuple:
        return self.encode("query", query), self.encode("passage", passage)

    def encode(self, side: str, batch: dict | None) -> torch.Tensor | None:
        if batch is None:
            return None
        mask = batch["attention_mask"].unsqueeze(-1)
        return (self.dropout(self.words[side](batch["input_ids"])) * mask).sum(1) / mask.sum(1)


def moved(value: object, device: str) -> object:
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value.to(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [None, 0, 1], ids=["plain", "replayed", "kept"])
@pytest.mark.parametrize("mask_duplicates", [False, True])
def test_a_step_never_waits_for_the_gpu(graphs, mask_duplicates):
    host = make_batch(copies=True)
    batch = {**moved(host, "cuda"), "rows": {side: HostRows.of(host[side]) for side in SIDES}}
    cache = None if graphs is None else CacheSettings(40, graphs=GraphBudget(graphs))
    step = ContrastiveStep(20.0, mask_duplicates=mask_duplicates, cache=cache)
    model = WordBag().cuda()
    for _ in range(2):  # loads kernels, allocates, and measures what a graph takes
        step(model, batch).loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
