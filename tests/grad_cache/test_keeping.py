"""Graphs kept from the first pass: the same bits, fewer model calls, and a way out when memory runs out."""

import contextlib
import logging
import weakref

import pytest
import torch
from torch import nn

from fastdense.grad_cache import GraphBudget, cached, cached_forward, keeping

LIMITS = {"query_chunk_rows": 4, "passage_chunk_rows": 6}
CALLS = 6  # for 10 queries and 20 passages, run once


@pytest.fixture
def gradients_of(make_retriever, make_batch, attached_loss):
    """Gradients of ``steps`` steps under a budget, and the model calls of the last one."""

    def run(graphs, *, one_encoder=False, steps=2, autocast=False, prepare=None, **options):
        retriever = make_retriever(**options)
        model = retriever if prepare is None else prepare(retriever)
        for seed in range(steps):
            torch.manual_seed(seed)
            retriever.outputs.clear()
            query, passage = make_batch(10, 8, seed=seed), make_batch(20, 12, seed=seed + 9)
            with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                cached = cached_forward(model, query, passage, **LIMITS, one_encoder=one_encoder, graphs=graphs)
                loss = attached_loss(retriever, cached.query, cached.passage)
            (loss * 3).backward()
        return {name: parameter.grad for name, parameter in retriever.named_parameters()}, len(retriever.outputs)

    return run


def assert_same_bits(actual, expected):
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"one_encoder": True},
        {"tied": False},
        {"checkpointing": True},
        {"autocast": True},
        {"autocast": True, "checkpointing": True, "one_encoder": True},
    ],
    ids=str,
)
def test_kept_and_replayed_graphs_give_the_same_bits(gradients_of, case):
    expected, calls = gradients_of(None, **case)
    everything = GraphBudget(1.0)
    for graphs in (everything, GraphBudget()):
        actual, once = gradients_of(graphs, **case)
        assert once == calls // 2
        assert_same_bits(actual, expected)
    actual, some_twice = gradients_of(GraphBudget(everything.spent / 2 / 2**30), **case)
    assert once < some_twice < calls
    assert_same_bits(actual, expected)


def test_a_budget_of_nothing_keeps_nothing(gradients_of):
    assert gradients_of(GraphBudget(0))[1] == 2 * CALLS
    assert gradients_of(GraphBudget(1e-9))[1] == 2 * CALLS


def test_kept_graphs_are_never_larger_than_the_budget():
    budget = GraphBudget(100 / 2**30)
    budget._bytes_per_token, budget._measured_width = 2.0, 5
    for _ in range(2):  # every step anew
        budget.start()
        assert [budget.admits(tokens, 5) for tokens in (20, 20, 20, 1)] == [True, True, False, False]
    budget.start()
    assert [budget.admits(10, 10), budget.admits(10, 10), budget.admits(10, 20)] == [True, True, False]


def test_without_memory_for_graphs_the_step_goes_on_without_them_and_says_so_once(gradients_of, caplog):
    expected, _ = gradients_of(None)
    alive = []

    def prepare(retriever):
        def out_of_memory(*_):
            alive.append(torch.is_grad_enabled())
            if alive.count(True) == 3:
                alive.append(True)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        retriever.register_forward_pre_hook(out_of_memory)
        return retriever

    graphs = GraphBudget(1.0)
    with caplog.at_level(logging.WARNING):
        actual, calls = gradients_of(graphs, prepare=prepare)
    assert calls == 2 * CALLS
    assert [record.message for record in caplog.records] == [
        "no graphs are kept from now on: chunks run twice, because there was no memory for more (CUDA out of memory)"
    ]
    assert_same_bits(actual, expected)


def test_running_out_of_memory_without_kept_graphs_is_an_error(gradients_of):
    def prepare(retriever):
        def out_of_memory(*_):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        retriever.register_forward_pre_hook(out_of_memory)
        return retriever

    for graphs in (None, GraphBudget(1.0)):
        with pytest.raises(torch.OutOfMemoryError):
            gradients_of(graphs, prepare=prepare)


@pytest.fixture
def failing_call():
    """Prepares a retriever whose every encoder call that ``fails`` raises oneDNN's error for memory that it lacks."""

    def prepared_by(fails):
        def prepare(retriever):
            def out_of_memory(*_):
                if fails():
                    raise RuntimeError("could not create a primitive")

            retriever.register_forward_pre_hook(out_of_memory)
            return retriever

        return prepare

    return prepared_by


def test_what_is_let_go_is_given_back_before_the_call_is_tried_again(gradients_of, failing_call, monkeypatch, caplog):
    expected, _ = gradients_of(None)
    graphs, events, kept = GraphBudget(1.0), [], []

    def fails():
        with_graph = torch.is_grad_enabled()
        events.append("with a graph" if with_graph else "without")
        return with_graph and events.count("with a graph") == 3

    def give_back(device_type):
        events.append(("given back", device_type, graphs._room, [output() for output in kept]))

    def keeping_track(*arguments):
        outputs = call(*arguments)
        kept.extend(weakref.ref(output) for output in outputs if output is not None and output.requires_grad)
        return outputs

    call = cached._Calls._call
    monkeypatch.setattr(cached._Calls, "_call", keeping_track)
    monkeypatch.setattr(cached, "give_back_freed", give_back)
    with caplog.at_level(logging.WARNING):
        actual, _ = gradients_of(graphs, prepare=failing_call(fails))
    gone = [None, None]  # of the calls before
    assert events[:5] == [*["with a graph"] * 3, ("given back", "cpu", None, gone), "without"]
    assert caplog.text.count("no memory for more (could not create a primitive)") == len(caplog.records) == 1
    assert_same_bits(actual, expected)


def test_an_error_that_more_memory_does_not_help_is_passed_on(gradients_of, failing_call, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="^could not create a primitive$"):
        gradients_of(GraphBudget(1.0), prepare=failing_call(lambda: True))
    assert not caplog.records  # it is not known to be about memory


def test_room_for_a_backward_pass_is_held_while_graphs_are_kept(gradients_of):
    graphs, held = GraphBudget(1.0), []

    def prepare(retriever):
        def note(*_):
            held.append(0 if graphs._room is None else graphs._room.nbytes())

        retriever.register_forward_pre_hook(note)
        for parameter in retriever.parameters():
            parameter.register_hook(note)
        return retriever

    for unmeasured in (1, 0):  # calls that were run before anything was known
        held.clear()
        gradients_of(graphs, prepare=prepare, steps=1)
        assert held[:unmeasured] == [0] * unmeasured
        assert min(held[unmeasured:CALLS]) == max(held[:CALLS]) > 0
        assert set(held[CALLS:]) == {0}  # in the backward pass


def test_the_size_of_that_room(monkeypatch):
    asked = []

    def storage(size, device="cpu"):
        asked.append((size, device))
        return object()

    monkeypatch.setattr(torch, "UntypedStorage", storage)
    monkeypatch.setattr(keeping, "activation_bytes", lambda run, _: (run(), 500))
    calls = [(50, 5), (80, 5), (10, 10)]
    for device, ahead in (("cpu", [(800, "cpu")]), ("cuda", [])):  # a CPU is asked before each call
        monkeypatch.setattr(keeping, "available_bytes", lambda _: 2**30)
        budget = GraphBudget()
        budget.start()
        budget.measure(lambda: None, device, 50, 5, nn.Linear(10, 10, bias=False))
        for copies in (4, 1):  # an optimizer's state comes in the first step
            asked.clear()
            budget.hold_room(iter(calls), device)
            budget.hold_room(iter(calls), device)
            assert asked == [(800 + copies * 400, device), *ahead, *ahead]
            budget.release_room()
            budget.start()


@pytest.mark.parametrize("granted", [0, 1, 2, 5])  # the room, or what a call is asked for in advance
def test_without_that_room_nothing_is_kept(gradients_of, monkeypatch, caplog, granted):
    expected, _ = gradients_of(None)
    sizes = []

    def no_memory(size, **_):
        sizes.append(size)
        if len(sizes) > granted:
            raise RuntimeError("can't allocate memory: 8 bytes")

    monkeypatch.setattr(torch, "UntypedStorage", no_memory)
    with caplog.at_level(logging.WARNING):
        actual, calls = gradients_of(GraphBudget(1.0))
    assert calls == 2 * CALLS
    assert "no graphs are kept from now on" in caplog.text
    assert_same_bits(actual, expected)


def test_other_errors_are_not_taken_for_a_lack_of_memory(gradients_of):
    def prepare(retriever):
        def fails(*_):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        retriever.register_forward_pre_hook(fails)
        return retriever

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        gradients_of(GraphBudget(1.0), prepare=prepare)


def test_an_automatic_budget_leaves_room(monkeypatch):
    model = nn.Linear(10, 10, bias=False)  # 400 bytes, four times
    model.register_buffer("not_trained", torch.zeros(1000))
    for device, share in (("cpu", 0.5), ("cuda", 0.8)):
        monkeypatch.setattr(keeping, "available_bytes", lambda _: 10_000)
        monkeypatch.setattr(keeping, "activation_bytes", lambda run, _: (run(), 500))
        budget = GraphBudget()
        assert budget.measure(lambda: "result", device, 50, 5, model) == "result"
        assert budget._limit == int((10_000 - 4 * 400) * share) - 500


def test_a_budget_is_never_more_than_what_is_available(monkeypatch):
    monkeypatch.setattr(keeping, "activation_bytes", lambda run, _: (run(), 500))
    for asked, available, limit in (
        (2**30, 10_000, int((10_000 - 4 * 400) * 0.8) - 500),
        (2**30, 1000, 0),
        (5000, 2**30, 5000),
        (5000, None, 5000),
    ):
        monkeypatch.setattr(keeping, "available_bytes", lambda _, available=available: available)
        budget = GraphBudget(asked / 2**30)
        budget.measure(lambda: None, "cpu", 50, 5, nn.Linear(10, 10, bias=False))
        assert budget._limit == limit


def test_where_nothing_tells_how_much_memory_there_is_nothing_is_kept(gradients_of, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "available_bytes", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert gradients_of(GraphBudget())[1] == 2 * CALLS
    assert [record.message for record in caplog.records] == [
        "no graphs are kept from now on: this system does not say how much memory is available"
    ]


def test_a_compiled_encoder_on_a_cpu_keeps_none_and_says_so(gradients_of, caplog):
    def prepare(retriever):
        retriever.query_encoder.dropout.compile(backend="eager")
        return retriever

    with caplog.at_level(logging.WARNING):
        assert gradients_of(GraphBudget(), prepare=prepare)[1] == 2 * CALLS
    assert "a compiled encoder's activations" in caplog.text
