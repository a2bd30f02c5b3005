"""The loss as a torch operator: autograd, torch.compile, autocast, determinism, strides."""

import pytest
import torch

from fastdense import ContrastiveLoss, contrastive_loss, contrastive_loss_and_grad


def operator_arguments(query, passage, *, symmetric=False, query_grad=True, passage_grad=True, by_products=True):
    rows, columns = query.shape[0], passage.shape[0]
    return (
        query,
        passage,
        torch.arange(rows) * 2,
        torch.tensor(5.0, requires_grad=query.requires_grad),
        torch.arange(columns) % 9,
        torch.rand(rows),
        0.1,
        symmetric,
        True,
        query_grad,
        passage_grad,
        3,
        1000,
        by_products,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_opcheck(implementation, draw, dtype, requires_grad, symmetric):
    query, passage = draw("random", 7, 15, 12, dtype)
    query.requires_grad_(requires_grad)
    passage.requires_grad_(requires_grad)
    operator = getattr(torch.ops.fastdense, f"contrastive_{implementation}").default
    torch.library.opcheck(operator, operator_arguments(query, passage, symmetric=symmetric))


@pytest.mark.parametrize("wanted", [(False, False, True), (True, False, True), (False, True, False)])
def test_opcheck_where_not_every_result_is_wanted(implementation, draw, wanted):
    query, passage = draw("random", 7, 15, 12)
    operator = getattr(torch.ops.fastdense, f"contrastive_{implementation}").default
    asked = dict(zip(("query_grad", "passage_grad", "by_products"), wanted, strict=True))
    torch.library.opcheck(operator, operator_arguments(query, passage, **asked))


@pytest.mark.parametrize("symmetric", [False, True])
def test_compile_without_a_graph_break(implementation, draw, symmetric):
    query, passage = draw("trained", 8, 16, 12)
    scale = torch.tensor(3.0)
    passage_id = torch.arange(16) % 11

    def loss(query, passage, scale):
        return contrastive_loss(
            query * 2, passage, scale=scale, passage_id=passage_id, symmetric=symmetric, implementation=implementation
        )

    inputs = [tensor.clone().requires_grad_() for tensor in (query, passage, scale)]
    expected = torch.autograd.grad(loss(*inputs), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_compile_with_shapes_and_scales_that_change(implementation, draw):
    torch.compiler.reset()
    compiled = torch.compile(contrastive_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    module = torch.compile(ContrastiveLoss(20.0), fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, scale in ((6, 1.0), (7, 2.0), (9, 20.0)):
        query, passage = draw("trained", rows, 2 * rows, 12)
        expected = contrastive_loss(query, passage, scale=scale, implementation=implementation)
        torch.testing.assert_close(
            compiled(query, passage, scale=scale, implementation=implementation), expected, rtol=1e-6, atol=1e-6
        )
    torch.testing.assert_close(module(query, passage), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jvp's own
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_differentiation_is_refused(implementation, draw, requires_grad):
    query, passage = draw("trained", 4, 8, 12)
    query.requires_grad_(requires_grad)

    def loss(query):
        return contrastive_loss(query, passage, implementation=implementation)

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(loss, (query,), (torch.ones_like(query),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        loss(torch.autograd.forward_ad.make_dual(query, torch.ones_like(query)))


def test_compile_of_loss_and_grad(implementation, draw):
    query, passage = draw("trained", 8, 16, 12)
    compiled = torch.compile(
        lambda q, p: contrastive_loss_and_grad(q, p, scale=4.0, implementation=implementation),
        fullgraph=True,
        backend="aot_eager",
    )
    expected = contrastive_loss_and_grad(query, passage, scale=4.0, implementation=implementation)
    for actual, wanted in zip(compiled(query, passage), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_same_inputs_same_bits(implementation, draw):
    query, passage = draw("trained", 50, 200, 32)
    target = torch.arange(50) % 10  # targets named several times
    first, second = (
        contrastive_loss_and_grad(
            query, passage, target, scale=20.0, symmetric=True, implementation=implementation, chunk_bytes=5000
        )
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_inputs_are_left_as_they_were(implementation, draw):
    query, passage = draw("trained", 9, 27, 12)
    before = query.clone(), passage.clone()
    contrastive_loss_and_grad(query, passage, symmetric=True, implementation=implementation)
    assert torch.equal(query, before[0])
    assert torch.equal(passage, before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_that_are_not_contiguous(implementation, draw, dtype):
    query, passage = draw("trained", 16, 48, 24, dtype)
    weight = torch.rand(16)
    target = torch.randperm(48)[:16]
    passage_id = torch.arange(48) % 40
    options = {"scale": 10.0, "chunk_bytes": 1000, "implementation": implementation}
    expected = contrastive_loss_and_grad(query, passage, target, weight=weight, passage_id=passage_id, **options)
    actual = contrastive_loss_and_grad(
        query.T.contiguous().T,
        torch.stack([passage, passage], 2)[:, :, 1],
        torch.stack([target, target], 1)[:, 0],
        weight=weight.flip(0).contiguous().flip(0),
        passage_id=passage_id.repeat_interleave(2)[::2],
        **options,
    )
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_that_is_broadcast(implementation, draw):
    query, passage = draw("random", 4, 8, 12)
    shared = query[:1].expand(4, -1)
    actual = contrastive_loss_and_grad(shared, passage, implementation=implementation)
    expected = contrastive_loss_and_grad(shared.contiguous(), passage, implementation=implementation)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast_changes_nothing(implementation, draw):
    query, passage = draw("trained", 9, 27, 12)
    expected = contrastive_loss_and_grad(query, passage, scale=30.0, implementation=implementation)
    with torch.autocast("cpu", torch.bfloat16):
        actual = contrastive_loss_and_grad(query, passage, scale=30.0, implementation=implementation)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_only_the_wanted_gradients_are_computed(implementation, draw, monkeypatch):
    from fastdense.loss import operator

    asked = []
    original = operator.differentiable_loss
    monkeypatch.setattr(
        operator, "differentiable_loss", lambda *a, **wanted: asked.append(wanted) or original(*a, **wanted)
    )
    query, passage = draw("random", 4, 8, 12)
    query.requires_grad_()
    with torch.no_grad():
        contrastive_loss(query, passage, implementation=implementation)
    contrastive_loss(query, passage, implementation=implementation).backward()
    assert asked == [
        {"query_grad": False, "passage_grad": False},
        {"query_grad": True, "passage_grad": False},
    ]
    assert query.grad is not None


def test_no_second_derivative(implementation, draw):
    query, passage = draw("random", 4, 8, 12)
    query.requires_grad_()
    loss = contrastive_loss(query, passage, implementation=implementation)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, query, create_graph=True)


def test_backward_twice_with_the_graph_kept(implementation, draw):
    query, passage = draw("random", 4, 8, 12)
    query.requires_grad_()
    loss = contrastive_loss(query, passage, implementation=implementation)
    loss.backward(retain_graph=True)
    once = query.grad.clone()
    (2 * loss).backward()
    torch.testing.assert_close(query.grad, 3 * once)


def test_loss_and_grad_stays_outside_autograd(implementation, draw):
    query, passage = draw("random", 4, 8, 12)
    result = contrastive_loss_and_grad(query.requires_grad_(), passage, implementation=implementation)
    assert not any(tensor.requires_grad for tensor in result)


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_compile_traces_the_choice_of_an_implementation(device):
    """Without a graph break, on devices that are not here too: the reasons may not import anything."""
    from fastdense.loss.backends import IMPLEMENTATIONS

    def count(tensor):
        reasons = [module.unavailable(torch.device(device), tensor.dtype) for module in modules]
        return tensor + len([reason for reason in reasons if reason is not None])

    modules = list(IMPLEMENTATIONS.values())
    compiled = torch.compile(count, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(1)), count(torch.zeros(1)))
