"""The optimizers follow torch's step by step, and their state survives a checkpoint."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from transformers.training_args import OptimizerNames

from fastdense.errors import UserError
from fastdense.jax.mesh import make_mesh, replicate
from fastdense.jax.optimizer import KINDS, JaxOptimizer, check_optimizer, make_transformation

SHAPES = {"kernel": (3, 4), "bias": (4,)}
DECAYS = {"kernel": True, "bias": False}
TORCH = {"adamw_torch": torch.optim.AdamW, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}


def arguments(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        optim=OptimizerNames(kind), weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-7
    )


def start(kind: str, max_grad_norm: float) -> tuple[JaxOptimizer, dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    theirs = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    groups = [{"params": [theirs[name]], "weight_decay": 0.1 * decays} for name, decays in DECAYS.items()]
    settings = {"betas": (0.8, 0.95), "eps": 1e-7} if kind == "adamw_torch" else {}
    params = replicate({name: value.detach().numpy() for name, value in theirs.items()}, make_mesh())
    ours = JaxOptimizer(params, make_transformation(arguments(kind), DECAYS), 0.1, max_grad_norm)
    return ours, theirs, TORCH[kind](groups, lr=0.1, **settings)


def gradients(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}


def take(ours: JaxOptimizer, step: int) -> None:
    ours.param_groups[0]["lr"] = 0.1 / (step + 1)
    ours.accumulate(replicate(gradients(step), make_mesh()))
    ours.step()


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
@pytest.mark.parametrize("kind", TORCH)
def test_every_kind_is_torchs(kind: str, max_grad_norm: float) -> None:
    ours, theirs, optimizer = start(kind, max_grad_norm)
    for step in range(4):
        take(ours, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (step + 1)
        for name, gradient in gradients(step).items():
            theirs[name].grad = torch.from_numpy(gradient)
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), max_grad_norm or torch.inf)
        optimizer.step()
        assert float(ours.grad_norm) == pytest.approx(norm.item(), rel=1e-6)
        for name, value in theirs.items():
            np.testing.assert_allclose(ours.params[name], value.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TORCH)
def test_a_loaded_state_goes_on_with_the_same_bits(kind: str, tmp_path) -> None:
    whole, _, _ = start(kind, 1.0)
    for step in range(4):
        if step == 2:
            torch.save(whole.state_dict(), tmp_path / "optimizer.pt")
            params = jax.tree.map(np.asarray, whole.params)
        take(whole, step)
    resumed, _, _ = start(kind, 1.0)
    resumed.params = replicate(params, make_mesh())
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for step in range(2, 4):
        take(resumed, step)
    assert all((np.asarray(resumed.params[name]) == np.asarray(whole.params[name])).all() for name in SHAPES)


def test_the_state_of_another_rule_is_refused() -> None:
    adam, _, _ = start("adamw_torch", 1.0)
    other, _, optimizer = start("rmsprop", 1.0)
    for state in (adam.state_dict(), optimizer.state_dict()):
        with pytest.raises(ValueError, match="another optimizer"):
            other.load_state_dict(state)


def test_other_optimizers_are_refused_by_name() -> None:
    for kind in KINDS:
        check_optimizer(arguments(kind))
    with pytest.raises(UserError, match="--optim adafactor is refused: .* adamw_torch"):
        check_optimizer(arguments("adafactor"))
