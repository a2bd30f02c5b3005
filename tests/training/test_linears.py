"""Linear layers whose products either library makes, and the choice between the two."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdense.training import linear_choice, linears
from fastdense.training.linear_choice import gains, worth_it
from fastdense.training.linears import ChosenLinear, large_layers, onednn_missing, use_onednn

pytestmark = pytest.mark.skipif(onednn_missing(), reason="this torch has no oneDNN")

PRODUCTS = ("outputs", "input gradients", "weight gradients")
SUBSETS = [chosen for count in range(4) for chosen in itertools.combinations(PRODUCTS, count)]


def answers(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> list[Tensor]:
    """Outputs and all gradients."""
    inputs = inputs.detach().requires_grad_()
    outputs = layer(inputs)
    wanted = [each for each in (inputs, *layer.parameters()) if each.requires_grad]
    return [outputs.detach(), *torch.autograd.grad(outputs, wanted, gradient)]


def layer_with(chosen: tuple[str, ...], bias: bool = True, inner: int = 300, outer: int = 270) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inner, outer, bias=bias)
    use_onednn(layer, chosen)  # type: ignore[arg-type]
    assert isinstance(layer, ChosenLinear) == bool(chosen)  # without a choice not even the detour through Python
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(17, 300), (3, 5, 300), (0, 300)])
@pytest.mark.parametrize("chosen", SUBSETS)
def test_every_choice_is_exact(chosen: tuple[str, ...], shape: tuple[int, ...], bias: bool) -> None:
    layer = layer_with(chosen, bias)
    inputs, gradient = torch.randn(shape), torch.randn(*shape[:-1], 270)
    found = answers(layer, inputs, gradient)
    exact = answers(layer.double(), inputs.double(), gradient.double())  # float64 goes torch's own way
    for actual, expected in zip(found, exact, strict=True):
        assert actual.dtype == torch.float32
        assert actual.shape == expected.shape
        assert (actual - expected).norm() <= 1e-6 * expected.norm()


def test_oneDNN_makes_what_it_is_chosen_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Counter[str]()
    genuine = linears._onednn

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        calls["outputs" if bias is not None else "weight gradients" if left.shape[0] == 270 else "input gradients"] += 1
        return genuine(left, right, bias)

    monkeypatch.setattr(linears, "_onednn", counted)
    for chosen in SUBSETS:
        calls.clear()
        answers(layer_with(chosen), torch.randn(17, 300), torch.randn(17, 270))
        assert set(calls) == set(chosen)
        assert all(count == 1 for count in calls.values())


def test_a_frozen_layer_passes_gradients_on() -> None:
    layer = layer_with(PRODUCTS).requires_grad_(False)
    plain = nn.Linear(300, 270).requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    inputs, gradient = torch.randn(4, 300), torch.randn(4, 270)
    torch.testing.assert_close(answers(layer, inputs, gradient), answers(plain, inputs, gradient))


def test_half_precision_goes_torchs_own_way() -> None:
    layer = layer_with(PRODUCTS)
    inputs = torch.randn(4, 300)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    assert layer.bfloat16()(inputs.bfloat16()).dtype == torch.bfloat16


def test_small_layers_and_layers_of_other_kinds_stay_as_they_are() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(8, 8), Doubled(300, 300), nn.Linear(300, 300).double(), nn.Linear(300, 300))
    assert large_layers(model) == [model[3]]
    use_onednn(model, PRODUCTS)
    assert [type(each) for each in model] == [nn.Linear, Doubled, nn.Linear, ChosenLinear]


def test_all_products_are_measured() -> None:
    measured = gains(Counter({(64, 32): 3, (32, 64): 1}))
    assert set(measured) == set(PRODUCTS)
    assert all(0.01 < gain < 100 for gain in measured.values())
    assert gains(Counter()) == {}


def test_a_tenth_is_not_worth_it() -> None:
    assert worth_it({"outputs": 1.3, "input gradients": 1.1, "weight gradients": 0.5}) == ["outputs"]


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``measuring(gain)`` makes a measurement of the tiny model's layers say that."""
    monkeypatch.setattr(linears, "_LEAST_WEIGHTS", 1)

    def say(gain: float) -> None:
        monkeypatch.setattr(linear_choice, "gains", lambda shapes: dict.fromkeys(PRODUCTS, gain))

    return say


def weights(output: Path) -> dict[str, Tensor]:
    return load_file(output / "model.safetensors")


def test_a_run_that_goes_on_keeps_to_its_choice(
    train_tiny: Any, measuring: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring(1.5)
    whole = weights(train_tiny("--save_strategy", "steps", "--save_steps", "2", name="whole"))
    assert (
        "oneDNN makes the outputs and the input gradients and the weight gradients of linear layers"
        in capsys.readouterr().err
    )
    checkpoint = train_tiny("--save_strategy", "steps", "--save_steps", "2", name="parts") / "checkpoint-2"
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["LinearChoice"]["args"]["chosen"] == list(PRODUCTS)

    measuring(0.5)
    other = weights(train_tiny(name="other"))
    assert any(not torch.equal(whole[name], other[name]) for name in whole)  # else the next lines show nothing
    assert "torch's own library makes all products of linear layers" in capsys.readouterr().err
    resumed = weights(train_tiny("--resume_from_checkpoint", str(checkpoint), name="resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("flags", [["--bf16", "true"], ["--full_determinism", "true"]])
def test_nothing_is_measured_where_nothing_may_be_chosen(
    flags: list[str], train_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_choice, "measured_gains", lambda model: pytest.fail("measured"))
    train_tiny(*flags)
