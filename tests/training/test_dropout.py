"""Dropout on a CPU: the right share, the right values, the same mask backward, and attention as torch computes it."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import forked
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdense.grad_cache import GraphBudget, cached_forward
from fastdense.grad_cache.memory import activation_bytes
from fastdense.modeling.load import load_retriever
from fastdense.training.dropout import ATTENTION, CpuDropout, attention, dropout, use_cpu_dropout

# The first output of Threefry4x32-20 for a counter and a key of zeros, from Random123's known answers. Words of one
# counter lie 16 values apart.
KNOWN = {0: 0x9C6CA96A, 16: 0xE17EAE66, 32: 0xFC10ECD4, 48: 0x5256A7D8}


@pytest.mark.parametrize("place", KNOWN)
def test_random_numbers_are_the_published_ones(place: int) -> None:
    ones, p = torch.ones(64), KNOWN[place] / 2**32
    kept = torch.ops.fastdense.dropout_native(ones, p, 0)[place]
    assert kept == pytest.approx(1 / (1 - p))
    assert torch.ops.fastdense.dropout_native(ones, p + 2**-32, 0)[place] == 0


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_value_is_dropped_with_its_probability_independently_of_its_neighbour(p: float) -> None:
    torch.manual_seed(0)
    count = 400_000
    kept = (dropout(torch.ones(count), p) != 0).double()
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(kept.mean() - (1 - p)) < 5 * deviation
    for distance in (1, 16, 64, 4096):
        both = (kept[distance:] * kept[:-distance]).mean()
        assert abs(both - (1 - p) ** 2) < 5 * ((1 - p) ** 2 * (1 - (1 - p) ** 2) / count) ** 0.5 + 2 * deviation


def test_every_call_has_its_own_mask_and_a_seed_repeats_it() -> None:
    ones = torch.ones(1000)
    torch.manual_seed(3)
    first, second = dropout(ones, 0.5), dropout(ones, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(ones, 0.5), first)


@pytest.mark.parametrize("shape", [(1,), (63,), (64, 3), (5, 7, 129), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_backward_pass_has_the_mask_of_the_forward_pass(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.rand(shape).add(1).to(dtype).requires_grad_()
    result = dropout(values, 0.25)
    assert result.dtype == dtype
    assert result.shape == values.shape
    (gradient,) = torch.autograd.grad(result.sum(), values)
    assert torch.equal(gradient != 0, result != 0)
    torch.testing.assert_close(result, values * gradient)


@pytest.mark.parametrize("count", [64, 1000, 300_001])
def test_bfloat16_is_float32_rounded_once(count: int) -> None:
    drop = partial(torch.ops.fastdense.dropout_native, p=0.3, seed=5)
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    values = torch.randn(count)
    values[::7] = torch.nan
    halves = values.bfloat16()
    same(drop(values, bfloat16=True), drop(values).bfloat16())
    same(drop(halves), drop(halves.float()))
    same(drop(halves, bfloat16=True), drop(halves.float()).bfloat16())


def test_what_is_not_contiguous_is_dropped_place_by_place() -> None:
    values = torch.rand(40, 30).add(1)
    torch.manual_seed(0)
    straight = dropout(values.T.contiguous(), 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(values.T, 0.5), straight)


MASK_SUM = """
import hashlib
import torch
import fastdense.loss.implementations.native
torch.set_num_threads(3)
print(hashlib.sha256(torch.ops.fastdense.dropout_native(torch.ones(300_001), 0.3, 5).numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("instruction_set", ["generic", "avx2", "avx512"])
def test_masks_depend_on_neither_instructions_nor_threads(instruction_set: str, tmp_path: Path) -> None:
    from fastdense._C import cpu_capabilities

    if not {"generic": True, **cpu_capabilities()}[instruction_set]:
        pytest.skip(f"this CPU has no {instruction_set}")
    environment = {"FASTDENSE_CPU_INSTRUCTION_SET": instruction_set}
    found = forked.run(["-c", MASK_SUM], log=tmp_path / "log", environment=environment)
    mask = torch.ops.fastdense.dropout_native(torch.ones(300_001), 0.3, 5)  # on one thread
    assert found == (0, f"{hashlib.sha256(mask.numpy().tobytes()).hexdigest()}\n")


def test_the_module_is_torch_s_outside_training_and_at_the_ends() -> None:
    values = torch.rand(50)
    assert torch.equal(CpuDropout(0.5).eval()(values), values)
    assert torch.equal(CpuDropout(0.0)(values), values)
    assert torch.equal(CpuDropout(1.0)(values), torch.zeros(50))


class Attending(nn.Module):
    is_causal = False


def heads(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).transpose(1, 2).float().requires_grad_()


def masks(kind: str, rows: int, length: int) -> Tensor | None:
    lengths = torch.randint(1, length + 1, (rows,))
    attend = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    return {"none": None, "bool": attend, "added": torch.where(attend, 0.0, -1e30)}[kind]


@pytest.mark.parametrize("kind", ["none", "bool", "added"])
def test_attention_equals_the_formula_with_the_same_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (heads(3, 9, 2, 4) for _ in range(3))
    mask = masks(kind, 3, 9)
    seeds = iter([11])
    monkeypatch.setattr("fastdense.training.dropout._draw_seed", lambda: next(seeds))
    result, _ = attention(Attending(), query, key, value, mask, dropout=0.3, scaling=0.7)

    kept = torch.ops.fastdense.dropout_native(torch.ones(3, 2, 9, 9), 0.3, 11).double()
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    scores = 0.7 * exact[0] @ exact[1].transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    expected = ((scores.softmax(-1) * kept) @ exact[2]).transpose(1, 2)

    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((result * weight).sum(), [query, key, value])
    wanted = torch.autograd.grad((expected * weight).sum(), exact)
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


def test_attention_without_dropout_is_torch_s() -> None:
    query, key, value = (heads(2, 6, 2, 4) for _ in range(3))
    result, _ = attention(Attending(), query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    assert torch.equal(result, expected)


def test_a_row_that_attends_to_nothing_stays_finite() -> None:
    query, key, value = (heads(1, 5, 1, 4) for _ in range(3))
    result, _ = attention(Attending(), query, key, value, torch.zeros(1, 1, 1, 5, dtype=torch.bool), dropout=0.1)
    assert result.isfinite().all()


def test_a_model_is_trained_with_it_and_saved_as_if_it_were_not(tiny_bert_dir: Path, tmp_path: Path) -> None:
    retriever = load_retriever(tiny_bert_dir)
    names = set(retriever.state_dict())
    inputs = {"input_ids": torch.randint(5, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    inputs["attention_mask"][0, 7:] = 0
    retriever.eval()
    before = retriever(passage=inputs)[1]
    _, torchs = activation_bytes(lambda: retriever.train()(passage=inputs), "cpu")

    assert use_cpu_dropout(retriever, own_attention=True) is None

    assert not [module for module in retriever.modules() if type(module) is nn.Dropout]
    assert retriever.query_encoder.backbone.config._attn_implementation == ATTENTION
    _, own = activation_bytes(lambda: retriever.train()(passage=inputs), "cpu")
    assert own < torchs
    torch.testing.assert_close(retriever.eval()(passage=inputs)[1], before)
    assert set(retriever.state_dict()) == names
    retriever.query_encoder.backbone.save_pretrained(tmp_path / "saved")
    assert ATTENTION not in (tmp_path / "saved" / "config.json").read_text()


def test_its_gradients_have_the_mean_of_torch_s(tiny_bert_dir: Path) -> None:
    """Over many masks both are estimates of one gradient."""

    def mean_gradient(own: bool, runs: int = 120) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        retriever = load_retriever(tiny_bert_dir)
        if own:
            use_cpu_dropout(retriever, own_attention=True)
        inputs = {"input_ids": torch.arange(5, 21).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}
        weight = next(p for name, p in retriever.named_parameters() if name.endswith("attention.self.value.weight"))
        found = []
        for _ in range(runs):
            vectors = retriever(passage=inputs)[1]
            found.append(torch.autograd.grad((vectors * torch.arange(32)).sum(), weight)[0])
        samples = torch.stack(found)
        return samples.mean(0), samples.std(0) / runs**0.5

    (mean, error), (own_mean, own_error) = mean_gradient(False), mean_gradient(True)
    deviations = (mean - own_mean) / (error.square() + own_error.square()).sqrt()
    assert deviations.square().mean() < 1.5  # 1 where both have one mean


@pytest.mark.parametrize(("flags", "own"), [((), True), (("--attn_implementation", "sdpa"), False)])
def test_training_uses_it_unless_attention_is_asked_for_by_name(
    flags: tuple[str, ...], own: bool, train_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        "fastdense.training.cpu.use_cpu_dropout", lambda model, own_attention: calls.append(own_attention)
    )
    train_tiny("--max_steps", "1", *flags)
    assert calls == [own]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_that_run_again_have_the_masks_of_their_first_run(checkpointing: bool, tiny_bert_dir: Path) -> None:
    retriever = load_retriever(tiny_bert_dir)
    use_cpu_dropout(retriever, own_attention=True)
    if checkpointing:
        retriever.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(5, 45).reshape(5, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def gradients(gib: float) -> list[Tensor]:
        torch.manual_seed(2)
        retriever.zero_grad()
        cached = cached_forward(retriever, batch, batch, max_tokens=16, one_encoder=True, graphs=GraphBudget(gib))
        cached.backward(torch.ones_like(cached.query), torch.ones_like(cached.passage).cumsum(0))
        return [weight.grad for weight in retriever.parameters() if weight.grad is not None]

    kept, again = gradients(1.0), gradients(0.0)
    assert len(kept) > 10
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
