"""Tevatron's encoders and loss objects, and what ``fused`` makes of them."""

import peer_stand_ins as peer
import pytest
import torch
from torch import nn

from fastdense.integrations import loss_calls, tevatron
from fastdense.integrations.tevatron import fused


def batch(rows, seed):
    return {"input_ids": torch.randint(30, (rows, 5), generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("temperature", [None, 0.05], ids=["v1", "v2"])
@pytest.mark.parametrize("passages", [1, 3])
def test_a_training_step_is_the_same(temperature, passages):
    outputs, gradients = [], []
    for encoder_class in (fused(peer.DenseModel), peer.DenseModel):
        model = encoder_class(temperature=temperature)
        outputs.append(model(query=batch(6, 0), passage=batch(6 * passages, 1)))
        (2.5 * outputs[-1].loss).backward()
        gradients.append(model.words.weight.grad)
    actual, expected = outputs
    assert actual.scores is None
    for name in ("loss", "q_reps", "p_reps"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
    assert (gradients[0] - gradients[1]).norm() <= 2e-6 * gradients[1].norm()


def test_a_fused_class_is_its_peer():
    encoder_class = fused(peer.DenseModel)
    assert issubclass(encoder_class, peer.EncoderModel)
    assert encoder_class.__name__ == "DenseModel"
    assert encoder_class().state_dict().keys() == peer.DenseModel().state_dict().keys()


def own_loss(model):
    model.cross_entropy = nn.CrossEntropyLoss(label_smoothing=0.1)


@pytest.mark.parametrize(
    ("encoder_class", "change"),
    [
        pytest.param(peer.DenseModel, nn.Module.eval, id="evaluation"),
        pytest.param(peer.ColbertModel, nn.Module.train, id="own similarity"),
        pytest.param(peer.DenseModel, own_loss, id="own loss"),
    ],
)
def test_the_parent_computes_what_is_not_fused(monkeypatch, encoder_class, change):
    monkeypatch.setattr(tevatron, "contrastive_loss", None)  # not callable
    actual, expected = fused(encoder_class)(), encoder_class()
    for model in (actual, expected):
        change(model)
    actual, expected = (model(query=batch(4, 0), passage=batch(8, 1)) for model in (actual, expected))
    for one, other in zip(actual, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_one_side_alone_is_encoded():
    output = fused(peer.DenseModel)()(passage=batch(4, 1))
    assert output.q_reps is None
    assert output.p_reps.shape == (4, 12)


@pytest.mark.parametrize("passages", [1, 3])
def test_the_loss_object_of_the_caching_trainer(assert_exact, normal, passages):
    plain = peer.TevatronSimpleContrastiveLoss
    assert_exact(fused(plain)(), plain(), (normal(5, 12), normal(5 * passages, 12)))


def test_an_unreduced_loss_goes_to_the_parent(normal, monkeypatch):
    monkeypatch.setattr(loss_calls, "contrastive_loss", None)  # not callable
    plain, inputs = peer.TevatronSimpleContrastiveLoss, (normal(5, 12), normal(10, 12))
    assert torch.equal(fused(plain)()(*inputs, reduction="none"), plain()(*inputs, reduction="none"))


@pytest.mark.parametrize("kind", [nn.Linear, dict], ids=lambda kind: kind.__name__)
def test_another_class_is_refused(kind):
    with pytest.raises(TypeError, match=f"one of Tevatron's encoder or contrastive loss classes, got {kind.__name__}"):
        fused(kind)
