"""GradCache's loss objects and their fused versions, alone and inside GradCache's own step."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

peer = pytest.importorskip("gradcache.loss")

from fastdense.integrations import grad_cache as ours  # noqa: E402
from fastdense.integrations import loss_calls  # noqa: E402


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_are_the_same(assert_exact, normal, negatives, reduction):
    inputs = normal(7, 12), normal(7 * (negatives + 1), 12)
    fused, plain = ours.SimpleContrastiveLoss(negatives), peer.SimpleContrastiveLoss(negatives)
    assert_exact(lambda x, y: fused(x, y, reduction=reduction), lambda x, y: plain(x, y, reduction=reduction), inputs)


def test_a_target_of_ones_own(assert_exact, normal):
    target = torch.tensor([8, 0, 3, 3, 1])
    fused, plain = ours.SimpleContrastiveLoss(), peer.SimpleContrastiveLoss()
    assert_exact(lambda x, y: fused(x, y, target), lambda x, y: plain(x, y, target), (normal(5, 12), normal(9, 12)))


def test_a_query_closure(assert_exact, normal):
    fused, plain = ours.ContrastiveLossWithQueryClosure(1), peer.ContrastiveLossWithQueryClosure(1)
    inputs = normal(5, 12), normal(10, 12)
    assert_exact(lambda x, y: fused(y, query_closure=lambda: x), lambda x, y: plain(x, y), inputs)
    assert_exact(fused, plain, inputs)
    with pytest.raises(ValueError, match="Expecting 1 or 2 tensor"):
        fused()


def test_the_peer_answers_what_is_not_fused(normal, monkeypatch):
    monkeypatch.setattr(loss_calls, "contrastive_loss", None)  # not callable
    query, passage, loss = normal(4, 12), normal(8, 12), ours.SimpleContrastiveLoss(1)
    rows = loss(query, passage, reduction="none")
    assert torch.equal(rows, F.cross_entropy(query @ passage.T, torch.arange(4) * 2, reduction="none"))
    with pytest.raises(AssertionError):
        loss(query, passage[:6])
    for target in (torch.tensor([0, -100, 5, 7]), torch.rand(4, 8)):
        assert torch.equal(loss(query, passage, target), F.cross_entropy(query @ passage.T, target))


def test_without_ranks_the_distributed_loss_says_what_its_peer_says():
    with pytest.raises(AssertionError, match="has not been properly initialized"):
        ours.DistributedContrastiveLoss()


def test_a_cached_step_of_gradcache(monkeypatch, normal):
    """The registry's package imports its modules under the repository's name."""
    monkeypatch.setitem(sys.modules, "grad_cache", sys.modules["gradcache"])
    monkeypatch.delitem(sys.modules, "grad_cache.context_managers", raising=False)
    from gradcache.grad_cache import GradCache

    texts, gradients = [normal(6, 10), normal(12, 10)], []
    for loss in (ours.SimpleContrastiveLoss(1), peer.SimpleContrastiveLoss(1)):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 8))
        value = GradCache([encoder, encoder], chunk_sizes=4, loss_fn=loss)(*texts)
        gradients.append([value, *(parameter.grad for parameter in encoder.parameters())])
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
