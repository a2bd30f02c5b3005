"""Gradients of embedding tables, summed over chunks: the values of torch's, without a dense gradient per chunk."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from fastdense.grad_cache import GraphBudget, attach_gradients, cached_forward
from fastdense.grad_cache.tables import TableGradients

Batch = dict[str, Tensor]
ROWS, WIDTH, PADDING = 500, 6, 3


class Bag(nn.Module):
    """Two tables, one of them with a row of padding that texts do contain, and lookups that are run again."""

    def __init__(self, checkpointing: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(ROWS, WIDTH, padding_idx=PADDING)
        self.kinds = nn.Embedding(2, WIDTH)
        self.other = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.checkpointing = checkpointing

    def forward(
        self, query: Mapping[str, Tensor] | None = None, passage: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        return None if query is None else self.encode(query), None if passage is None else self.encode(passage)

    def encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if self.checkpointing:
            return checkpoint(self.looked_up, inputs["input_ids"], inputs["attention_mask"], use_reentrant=False)
        return self.looked_up(inputs["input_ids"], inputs["attention_mask"])

    def looked_up(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.words(ids) + self.kinds(ids % 2) + F.embedding(ids, self.other)
        return (hidden.tanh() * mask.unsqueeze(-1)).sum(1)


def make(dtype: torch.dtype = torch.float32, **options: bool) -> Bag:
    torch.manual_seed(0)
    return Bag(**options).to(dtype)


@pytest.fixture
def batches() -> tuple[Batch, Batch]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        {
            "input_ids": torch.randint(0, 12, (rows, 7), generator=generator),
            "attention_mask": torch.ones(rows, 7).long(),
        }
        for rows in (5, 9)
    )


def step(model: Any, batches: tuple[Batch, Batch], **options: Any) -> None:
    cached = cached_forward(model, *batches, max_tokens=21, **options)
    weights = [torch.arange(t.numel()).reshape(t.shape).to(t.dtype) for t in (cached.query, cached.passage)]
    attach_gradients(cached.query.new_tensor(1.0), (cached.query, cached.passage), weights).backward()


def plain_gradients(model: Bag, batches: tuple[Batch, Batch]) -> dict[str, Tensor]:
    model.zero_grad()
    outputs = (model(query=batches[0])[0], model(passage=batches[1])[1])
    weights = [torch.arange(t.numel()).reshape(t.shape).to(t.dtype) for t in outputs]
    torch.autograd.backward(outputs, weights)
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("graphs", [0.0, 1.0])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("one_encoder", [False, True])
def test_tables_have_the_gradients_of_the_plain_step(
    graphs: float, checkpointing: bool, one_encoder: bool, batches: tuple[Batch, Batch]
) -> None:
    model = make(checkpointing=checkpointing)
    expected = plain_gradients(model, batches)
    model.zero_grad()
    step(model, batches, graphs=GraphBudget(graphs), one_encoder=one_encoder)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], msg=name)
    assert not model.words.weight.grad[PADDING].any()
    assert model.other.grad[PADDING].any()


class BagWithRareWords(Bag):
    """Looks a third table up only where a text has a certain word."""

    def __init__(self) -> None:
        super().__init__()
        self.rare = nn.Embedding(ROWS, WIDTH)

    def looked_up(self, ids: Tensor, mask: Tensor) -> Tensor:
        vectors = super().looked_up(ids, mask)
        found = ids == ROWS - 1
        return vectors + (self.rare(ids) * found.unsqueeze(-1)).sum(1) if found.any() else vectors


def test_a_table_that_the_last_chunk_does_not_need_has_its_gradient(batches: tuple[Batch, Batch]) -> None:
    torch.manual_seed(0)
    model = BagWithRareWords()
    for batch in batches:
        batch["attention_mask"][:, -1] = 0
    batches[0]["attention_mask"][2] = 1  # the longest text comes first
    batches[0]["input_ids"][2, 4] = ROWS - 1
    expected = plain_gradients(model, batches)
    assert expected["rare.weight"].any()
    model.zero_grad()
    step(model, batches, one_encoder=True)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], msg=name)


def test_gradients_accumulate_over_steps_and_hooks_see_one_gradient_a_step(batches: tuple[Batch, Batch]) -> None:
    model = make()
    expected = plain_gradients(model, batches)
    model.zero_grad()
    seen: list[Tensor] = []
    model.words.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    step(model, batches)
    step(model, batches)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], expected["words.weight"])
    torch.testing.assert_close(seen[1], 2 * expected["words.weight"])


def test_frozen_tables_get_no_gradient(batches: tuple[Batch, Batch]) -> None:
    model = make()
    model.words.weight.requires_grad_(False)
    step(model, batches)
    assert model.words.weight.grad is None
    assert model.other.grad.any()


def test_sums_of_a_bfloat16_table_are_rounded_once() -> None:
    table = nn.Embedding(ROWS, WIDTH, dtype=torch.bfloat16)
    tables = TableGradients(table)
    for _ in range(300):
        with tables.collecting(last=False):
            table(torch.tensor([7])).sum().backward()
    assert table.weight.grad is None
    with tables.collecting(last=True):
        vectors = table(torch.tensor([8]))
    assert not tables.take_the_others()  # of this table the lookup hands the sum on
    vectors.sum().backward()
    assert table.weight.grad[7, 0] == 300  # in bfloat16 it would stay at 256
    assert table.weight.grad[8, 0] == 1
    assert not tables.take_the_others()


def test_a_table_that_the_last_call_does_not_look_up_has_its_sum_handed_on_by_the_caller() -> None:
    table = nn.Embedding(ROWS, WIDTH)
    tables = TableGradients(table)
    with tables.collecting(last=False):
        table(torch.tensor([7])).sum().backward()
    others = tables.take_the_others()
    assert others[table.weight][7, 0] == 1
    assert not tables.take_the_others()


def dense_gradients(run: Callable[[], None]) -> int:
    with profile(acc_events=True) as found:
        run()
    return sum(event.count for event in found.key_averages() if event.key == "aten::embedding_dense_backward")


def test_no_chunk_makes_a_dense_gradient(batches: tuple[Batch, Batch]) -> None:
    model = make()
    chunks = 5  # of three texts each; what is no module or has fewer rows than a chunk has tokens is left to torch
    assert dense_gradients(lambda: step(model, batches, one_encoder=True)) == 2 * chunks


@pytest.mark.parametrize(
    "options",
    [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}],
    ids=lambda options: next(iter(options)),
)
def test_special_tables_are_left_to_torch(options: dict[str, Any]) -> None:
    table = nn.Embedding(ROWS, WIDTH, **options)
    ids = torch.tensor([[1, 1, 4]])
    table(ids).sum().backward()
    expected, table.weight.grad = table.weight.grad, None
    tables = TableGradients(table)
    with tables.collecting(last=False):
        table(ids).sum().backward()
    assert not tables.take_the_others()
    torch.testing.assert_close(table.weight.grad.to_dense(), expected.to_dense())
