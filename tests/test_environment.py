"""What the package says about the machine."""

import pytest
import torch

from fastdense.environment import emulates_bf16


@pytest.mark.parametrize(
    ("capabilities", "emulates"),
    [
        ({"avx2": True, "avx512_bf16": False}, True),
        ({"avx512_bf16": True}, False),
        ({"amx_bf16": True}, False),
        ({"neon": True, "bf16": True}, False),  # ARM
        ({}, False),  # unknown
    ],
    ids=str,
)
def test_bf16_is_emulated_without_instructions_for_it(capabilities, emulates, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert emulates_bf16() is emulates


def test_a_torch_that_says_nothing_of_the_cpu_is_no_reason_to_warn(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not emulates_bf16()
