import pytest
import torch

from fastdense.grad_cache import attach_gradients


def test_the_value_is_kept_and_the_gradients_are_multiplied():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    loss = attach_gradients(torch.tensor(1.25), (weight * 2, scale), (torch.tensor([10.0, 20.0]), torch.tensor(7.0)))
    assert loss.item() == 1.25

    (loss * 3).backward()

    assert weight.grad.tolist() == [60.0, 120.0]
    assert scale.grad.item() == 21.0


def test_gradients_arrive_in_the_dtype_of_their_tensor_after_scaling_in_their_own():
    tensor = torch.ones(1, dtype=torch.float16, requires_grad=True)
    gradient = torch.tensor([1e-8])  # zero in float16 until it is scaled
    (attach_gradients(torch.tensor(0.0), (tensor,), (gradient,)) * 2**16).backward()
    assert tensor.grad.dtype == torch.float16
    assert tensor.grad.item() == pytest.approx(1e-8 * 2**16, rel=1e-3)


def test_a_tensor_without_gradient_is_passed_over():
    frozen, free = torch.ones(2), torch.ones(2, requires_grad=True)
    attach_gradients(torch.tensor(0.0), (frozen, free), (torch.ones(2), torch.ones(2))).backward()
    assert frozen.grad is None
    assert free.grad.tolist() == [1, 1]


def test_the_loss_s_own_graph_is_not_used():
    free = torch.ones((), requires_grad=True)
    attach_gradients(free * 5, (free,), (torch.tensor(2.0),)).backward()
    assert free.grad.item() == 2


@pytest.mark.parametrize(
    ("loss", "gradients", "message"),
    [
        (torch.zeros(2), [torch.zeros(2)], r"loss must be a scalar, not of shape \(2,\)"),
        (torch.zeros(()), [torch.zeros(3)], r"shapes of tensors, \[\(2,\)\], not \[\(3,\)\]"),
        (torch.zeros(()), [], r"shapes of tensors, \[\(2,\)\], not \[\]"),
    ],
)
def test_what_does_not_match_is_refused(loss, gradients, message):
    with pytest.raises(ValueError, match=message):
        attach_gradients(loss, (torch.zeros(2, requires_grad=True),), gradients)
