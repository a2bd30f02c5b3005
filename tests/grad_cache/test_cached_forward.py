"""The cached step against the plain one."""

import contextlib
import gc
import weakref
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from fastdense.grad_cache import GraphBudget, cached_forward
from fastdense.grad_cache.stream import Stream

ROWS = {"query_chunk_rows": 4, "passage_chunk_rows": 6}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name in expected:
        scale = expected[name].abs().max().clamp(min=0.1 * largest)  # some gradients are zero but for rounding
        error = (actual[name] - expected[name]).abs().max()
        assert error <= tolerance * scale, f"{name}: {error:.2e} beside {scale:.2e}"


def cached_step(model, retriever, query, passage, attached_loss, *, factor=1.0, limits=ROWS):
    torch.manual_seed(3)
    cached = cached_forward(model, query, passage, **limits)
    loss = attached_loss(retriever, cached.query, cached.passage)
    (loss * factor).backward()
    return loss.detach(), gradients(retriever)


@pytest.fixture
def plain_step(attached_loss, chunked_with_graph):
    def step(model, retriever, query, passage, *, factor=1.0, limits=ROWS):
        torch.manual_seed(3)
        representations = chunked_with_graph(model, query, passage, **limits)
        loss = attached_loss(retriever, *representations)
        (loss * factor).backward()
        return loss.detach(), gradients(retriever)

    return step


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("tied", "one_encoder"), [(True, False), (True, True), (False, False)], ids=["tied", "one-stream", "untied"]
)
@pytest.mark.parametrize(
    "limits",
    [
        ROWS,
        {"query_chunk_rows": 1, "passage_chunk_rows": 1},
        {"query_chunk_rows": 5, "passage_chunk_rows": 10},
        {"query_chunk_rows": 100, "passage_chunk_rows": 100},
        {"query_chunk_rows": 100, "passage_chunk_rows": 3, "max_tokens": 24},
    ],
    ids=["short-last", "one-row", "even", "larger-than-batch", "token-budget"],
)
def test_a_cached_step_equals_the_plain_one_with_dropout(
    make_retriever, make_batch, attached_loss, plain_step, tied, one_encoder, checkpointing, limits
):
    limits = {**limits, "one_encoder": one_encoder}
    query, passage = make_batch(10, 8, seed=1), make_batch(20, 12, seed=2)
    retriever, twin = (make_retriever(tied=tied, checkpointing=checkpointing) for _ in range(2))

    loss, actual = cached_step(retriever, retriever, query, passage, attached_loss, limits=limits)
    expected_loss, expected = plain_step(twin, twin, query, passage, limits=limits)

    assert loss == expected_loss
    assert_same_gradients(actual, expected)


def test_without_dropout_it_equals_one_model_call_on_the_whole_batch(make_retriever, make_batch, attached_loss):
    query, passage = make_batch(10, 8, seed=1), make_batch(20, 12, seed=2)
    retriever, twin = make_retriever(dropout=0.0), make_retriever(dropout=0.0)

    loss, actual = cached_step(retriever, retriever, query, passage, attached_loss)
    expected_loss = attached_loss(twin, *twin(query=query, passage=passage))
    expected_loss.backward()

    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    assert_same_gradients(actual, gradients(twin))


@pytest.mark.parametrize("one_encoder", [False, True])
@pytest.mark.parametrize("left", [False, True], ids=["right-padded", "left-padded"])
def test_representations_are_in_the_order_of_the_rows(make_retriever, make_batch, left, one_encoder):
    query, passage = make_batch(10, 8, seed=1, left=left), make_batch(21, 12, seed=2, left=left)
    retriever = make_retriever(dropout=0.0)
    cached = cached_forward(retriever, query, passage, **ROWS, one_encoder=one_encoder)
    with torch.no_grad():
        expected = retriever(query=query, passage=passage)
    torch.testing.assert_close((cached.query.detach(), cached.passage.detach()), expected, atol=1e-6, rtol=1e-5)


def assert_replayed_bit_for_bit(outputs: list) -> None:
    first, replay = outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    assert len(first) == len(replay) > 2
    for call, again in zip(first, replay, strict=True):
        for output, output_again in zip(call, again, strict=True):
            assert (output is None) == (output_again is None)
            assert output is None or torch.equal(output, output_again)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_replay_repeats_the_first_pass_bit_for_bit(make_retriever, make_batch, attached_loss, dtype):
    retriever = make_retriever(dropout=0.5)
    with torch.autocast("cpu", torch.bfloat16) if dtype else contextlib.nullcontext():
        cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
        loss = attached_loss(retriever, cached.query, cached.passage)
    torch.rand(17)  # drawn in between: the replay neither feels it nor undoes it
    state = torch.get_rng_state()
    loss.backward()
    assert_replayed_bit_for_bit(retriever.outputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_last_call_holds_rows_of_both_sides(make_retriever, make_batch):
    retriever = make_retriever()
    cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
    sides = [tuple(None if side is None else len(side) for side in call) for call in retriever.outputs]
    assert sides == [(4, None), (4, None), (None, 6), (None, 6), (None, 6), (2, 2)]


def test_random_numbers_after_a_step_are_those_after_the_plain_one(
    make_retriever, make_batch, attached_loss, plain_step
):
    query, passage, retriever = make_batch(10, 8), make_batch(20, 12), make_retriever()
    plain_step(retriever, retriever, query, passage)
    expected = torch.rand(4)
    cached_step(retriever, retriever, query, passage, attached_loss)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("inside", ["model", "step", "step-and-backward"])
def test_bfloat16_autocast_wherever_it_is_opened(make_retriever, make_batch, attached_loss, chunked_with_graph, inside):
    query, passage = make_batch(10, 8, seed=1), make_batch(20, 12, seed=2)
    autocast = torch.autocast("cpu", torch.bfloat16)
    retriever, twin = make_retriever(), make_retriever()

    torch.manual_seed(3)
    with autocast:
        expected_loss = attached_loss(twin, *chunked_with_graph(twin, query, passage, **ROWS))
    expected_loss.backward()

    model = retriever
    if inside == "model":  # as accelerate wraps it
        model = autocast(retriever)
    torch.manual_seed(3)
    with contextlib.nullcontext() if inside == "model" else autocast:
        cached = cached_forward(model, query, passage, **ROWS)
        loss = attached_loss(retriever, cached.query, cached.passage)
        if inside == "step-and-backward":
            loss.backward()
    if inside != "step-and-backward":
        loss.backward()

    assert loss == expected_loss
    assert retriever.outputs[0][0].dtype == twin.outputs[0][0].dtype
    # Sums of bfloat16 products in another order; a lost cast or another dropout is off by far more.
    assert_same_gradients(gradients(retriever), gradients(twin), tolerance=2e-2)


def test_a_loss_scale_and_accumulation_multiply_the_gradients(make_retriever, make_batch, attached_loss, plain_step):
    batches = [(make_batch(10, 8, seed=i), make_batch(20, 12, seed=i + 5)) for i in range(3)]
    retriever, twin = make_retriever(), make_retriever()
    for query, passage in batches:
        _, actual = cached_step(retriever, retriever, query, passage, attached_loss, factor=2.0**16 / 3)
        _, expected = plain_step(twin, twin, query, passage, factor=1 / 3)
    assert_same_gradients({name: gradient / 2**16 for name, gradient in actual.items()}, expected)


def test_a_gradient_scaler_takes_the_step_of_the_plain_one(make_retriever, make_batch, attached_loss, plain_step):
    query, passage = make_batch(10, 8, seed=1), make_batch(20, 12, seed=2)
    retriever, twin = make_retriever(), make_retriever()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(retriever.parameters(), lr=1.0)

    torch.manual_seed(3)
    cached = cached_forward(retriever, query, passage, **ROWS)
    scaler.scale(attached_loss(retriever, cached.query, cached.passage)).backward()
    scaler.unscale_(optimizer)
    _, expected = plain_step(twin, twin, query, passage)

    assert_same_gradients(gradients(retriever), expected)


def test_a_differentiable_loss_and_backward_by_hand_do_the_same(make_retriever, make_batch):
    query, passage = make_batch(10, 8, seed=1), make_batch(20, 12, seed=2)
    retriever, twin = make_retriever(), make_retriever()
    retriever.log_scale = twin.log_scale = None

    torch.manual_seed(3)
    cached = cached_forward(retriever, query, passage, **ROWS)
    (cached.query.square().sum() + cached.passage.sin().sum()).backward()
    torch.manual_seed(3)
    cached = cached_forward(twin, query, passage, **ROWS)
    cached.backward(2 * cached.query.detach(), cached.passage.detach().cos())

    assert_same_gradients(gradients(retriever), gradients(twin))


def test_a_frozen_passage_encoder(make_retriever, make_batch, attached_loss):
    retriever = make_retriever(tied=False)
    retriever.passage_encoder.requires_grad_(False)
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
    attached_loss(retriever, cached.query, cached.passage).backward()
    assert all(parameter.grad is not None for parameter in retriever.query_encoder.parameters())
    assert all(parameter.grad is None for parameter in retriever.passage_encoder.parameters())


def test_a_second_backward_is_refused(make_retriever, make_batch, attached_loss):
    retriever = make_retriever()
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
    loss = attached_loss(retriever, cached.query, cached.passage)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once: run it again"):
        loss.backward()


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_batch_without_rows_is_refused(make_retriever, make_batch, side):
    batches = {"query": make_batch(2, 4), "passage": make_batch(2, 4), side: make_batch(0, 4)}
    with pytest.raises(ValueError, match=f"the {side} batch has no rows"):
        cached_forward(make_retriever(), **batches, **ROWS)


class Saved:
    """A tensor that some graph keeps for its backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_no_graph_outlives_its_call(make_retriever, make_batch):
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()
    at_start, at_end = [], []

    def save(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    retriever = make_retriever()
    retriever.register_forward_pre_hook(lambda *_: at_start.append(len(alive)))
    retriever.register_forward_hook(lambda *_: at_end.append(len(alive)))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
        cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
        cached.backward(torch.ones_like(cached.query), torch.ones_like(cached.passage))

    assert at_start == [0] * 12
    assert at_end[:6] == [0] * 6
    assert min(at_end[6:]) > 0


def tensors() -> list[Tensor]:
    return [found for found in gc.get_objects() if type(found) is Tensor]


def test_the_first_pass_leaves_nothing_between_its_chunks(make_retriever, make_batch):
    """Small blocks there would leave no room for the tensors of later chunks."""
    blocks = []

    def count(retriever, *_: object) -> None:
        retriever.outputs.clear()
        blocks.append(len({tensor.untyped_storage().data_ptr() for tensor in tensors()}))

    retriever = make_retriever()
    retriever.register_forward_pre_hook(count)
    cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS, one_encoder=True)
    assert len(blocks) > 4
    assert len(set(blocks[1:])) == 1  # the first chunk makes room for all representations


def test_the_replay_finds_one_copy_of_the_gradients(make_retriever, make_batch, attached_loss):
    rows = []
    retriever = make_retriever()
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS, one_encoder=True)
    width = cached.query.shape[1]
    loss = attached_loss(retriever, cached.query, cached.passage)
    del cached
    retriever.register_forward_pre_hook(
        lambda *_: rows.append({len(tensor) for tensor in tensors() if tensor.shape[1:] == (width,)})
    )
    loss.backward()
    assert rows
    assert all(30 in alive and not alive & {10, 20} for alive in rows)


def test_inputs_are_let_go_after_the_backward(make_retriever, make_batch, attached_loss, monkeypatch):
    streams = []

    def recorded(*arguments: object) -> Stream:
        stream = Stream(*arguments)
        streams.append(weakref.ref(stream))
        return stream

    monkeypatch.setattr("fastdense.grad_cache.cached.Stream", recorded)
    retriever = make_retriever()
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS, graphs=GraphBudget(1.0))
    loss = attached_loss(retriever, cached.query, cached.passage)
    assert all(stream() is not None for stream in streams)
    loss.backward()
    assert [stream() for stream in streams] == [None, None]  # though loss and representations still live


class SmallEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(50, 8), nn.Linear(8, 8)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        hidden = nn.functional.dropout(self.linear(self.embedding(inputs["input_ids"])), 0.5)
        return (hidden * inputs["attention_mask"].unsqueeze(-1)).sum(1)


class SmallRetriever(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = SmallEncoder()
        self.outputs: list[tuple[Tensor | None, Tensor | None]] = []

    def forward(
        self, query: Mapping[str, Tensor] | None = None, passage: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        query_output, passage_output = (None if side is None else self.encoder(side) for side in (query, passage))
        self.outputs.append(tuple(None if out is None else out.detach() for out in (query_output, passage_output)))
        return query_output, passage_output


@pytest.mark.parametrize("how", ["function", "in-place"])
def test_a_compiled_encoder_runs_one_program_in_both_passes(make_batch, how):
    """With a graph in both: a program compiled for inference may draw other dropout than the one for training."""
    with_graph = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        with_graph.append(torch.is_grad_enabled())
        return graph.forward

    torch.manual_seed(1)
    retriever = SmallRetriever()
    if how == "function":
        retriever.encoder = torch.compile(retriever.encoder, backend=backend, dynamic=True)
    else:
        retriever.encoder.compile(backend=backend, dynamic=True)
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
    compiled = len(with_graph)
    cached.backward(torch.ones_like(cached.query), torch.ones_like(cached.passage))
    assert all(with_graph)
    assert len(with_graph) == compiled > 0
    assert_replayed_bit_for_bit(retriever.outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inductor's own imports
def test_inductor_s_dropout_is_replayed_bit_for_bit(make_batch):
    torch.manual_seed(1)
    retriever = SmallRetriever()
    retriever.encoder = torch.compile(retriever.encoder, dynamic=True)
    cached = cached_forward(retriever, make_batch(10, 8), make_batch(20, 12), **ROWS)
    cached.backward(torch.ones_like(cached.query), torch.ones_like(cached.passage))
    assert_replayed_bit_for_bit(retriever.outputs)
