"""open_clip's loss and its fused version; open_clip itself where it can be imported."""

import peer_stand_ins
import pytest
import torch
import torch.nn.functional as F

peer = peer_stand_ins.import_open_clip()

from fastdense.integrations import open_clip as ours  # noqa: E402


@pytest.fixture
def features(normal):
    return F.normalize(normal(9, 16), dim=1), F.normalize(normal(9, 16), dim=1)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_loss_and_gradients_are_the_same(assert_exact, features, scale):
    inputs = (*features, torch.tensor(scale).log())
    fused, plain = ours.ClipLoss(cache_labels=True), peer.ClipLoss(cache_labels=True)
    assert_exact(lambda i, t, s: fused(i, t, s.exp()), lambda i, t, s: plain(i, t, s.exp()), inputs)


def test_a_scale_that_is_a_number(assert_exact, features):
    assert_exact(lambda i, t: ours.ClipLoss()(i, t, 20.0), lambda i, t: peer.ClipLoss()(i, t, 20.0), features)


def test_the_result_as_a_dictionary(features):
    loss = ours.ClipLoss()
    assert loss(*features, 20.0, output_dict=True) == {"contrastive_loss": loss(*features, 20.0)}


def test_the_parent_computes_what_is_not_fused(features, monkeypatch):
    monkeypatch.setattr(ours, "contrastive_loss", None)  # not callable
    scale, bias = torch.tensor(20.0), torch.tensor(-10.0)
    assert torch.equal(ours.ClipLoss()(*features, scale, bias), peer.ClipLoss()(*features, scale, bias))


def test_autocast_rounds_the_features_only(features):
    exact = peer.ClipLoss()(*(tensor.double() for tensor in features), 50.0)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = ours.ClipLoss()(*features, 50.0), peer.ClipLoss()(*features, 50.0)
    assert fused.dtype == torch.float32
    assert abs(fused - exact) <= abs(plain - exact) + 1e-3
    rounded = [tensor.bfloat16().float() for tensor in features]
    torch.testing.assert_close(fused, ours.ClipLoss()(*rounded, 50.0), rtol=1e-5, atol=1e-5)
