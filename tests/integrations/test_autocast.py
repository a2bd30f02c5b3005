"""Under autocast the drop-ins round their operands, as a matrix product does, and nothing else."""

import torch

from fastdense.integrations.autocast import as_operands


def test_operands_get_the_dtype_of_a_product(normal):
    left, right = normal(2, 3), normal(4, 3)
    for dtype in (torch.float32, torch.float16, torch.float64):
        with torch.autocast("cpu", torch.bfloat16):
            operands = as_operands(left.to(dtype), right.to(dtype))
            product = left.to(dtype) @ right.to(dtype).T
        assert {operand.dtype for operand in operands} == {product.dtype}


def test_nothing_happens_outside_autocast(normal):
    tensor = normal(2, 3)
    assert as_operands(tensor)[0] is tensor
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert as_operands(tensor)[0] is tensor
