"""The machine code that nvcc made of csrc/cuda, in the library as it was built: no GPU is needed to read it."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from fastdense import _C

LIBRARY = Path(_C.__file__).with_name("_ops.so")
ARCHITECTURES = ["sm_80", "sm_90a", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_100a", "sm_120"))]
PRODUCTS = ["exponentials_kernel", "row_maxima_kernel"]
WGMMA_PRODUCTS = ["wgmma_exponentials", "wgmma_row_maxima"]


def tool(name):
    """From the CUDA toolkit, or as triton brings it."""
    if found := shutil.which(name):
        return found
    triton = pytest.importorskip("triton", reason=f"needs {name}")
    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


@cache
def kernels_of(architecture):
    """{name: (registers, bytes of stack, machine code)} of each kernel."""
    if not _C.build_info()["cuda"]:
        pytest.skip("fastdense was built without CUDA kernels")
    dump = [tool("cuobjdump"), "-arch", architecture]
    usage, code = (
        subprocess.run([*dump, what, LIBRARY], capture_output=True, text=True, check=True).stdout
        for what in ("-res-usage", "-sass")
    )
    found = {}
    for name in (*PRODUCTS, *WGMMA_PRODUCTS, "smoothing_kernel", "row_epilogue_kernel"):
        symbol = rf"\S*\d{name}E\S*"  # mangled: its length, it, its arguments
        stated = re.search(rf"Function {symbol}:\s*REG:(\d+) STACK:(\d+)", usage)
        body = re.search(rf"Function : {symbol}\n(.*?)(?=\n\s*Function :|\Z)", code, re.DOTALL)
        assert stated, f"no {name} for {architecture}"
        assert body, f"no {name} for {architecture}"
        found[name] = int(stated[1]), int(stated[2]), body[1]
    return found


@pytest.fixture(params=ARCHITECTURES)
def kernels(request):
    """Those of one architecture."""
    return kernels_of(request.param)


def test_nothing_spills(kernels):
    for name, (_, stack, code) in kernels.items():
        assert stack == 0, name
        assert not re.search(r"\b(LDL|STL)\b", code), name


def test_a_block_finds_its_registers(kernels):
    for name, (registers, _, _) in kernels.items():
        assert registers * (512 if name == "row_epilogue_kernel" else 256) <= 65536, name


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("instruction", [r"HMMA\.16816\.F32\.BF16", "LDGSTS", r"LDSM\.16\.M88\.4"])
def test_products_use_tensor_cores_on_operands_that_arrive_asynchronously(kernels, name, instruction):
    assert re.search(instruction, kernels[name][2])


@pytest.mark.parametrize("name", WGMMA_PRODUCTS)
@pytest.mark.parametrize("instruction", [r"HGMMA\.64x128x16\.F32\.BF16", r"UTMALDG\.2D"])
def test_hopper_multiplies_what_its_copy_engine_brings(name, instruction):
    code = kernels_of("sm_90a")[name][2]
    assert re.search(instruction, code)
    assert not re.search("HMMA|LDGSTS", code)


@pytest.mark.parametrize("name", WGMMA_PRODUCTS)
def test_two_blocks_find_their_registers_on_hopper(name):
    assert 2 * 256 * kernels_of("sm_90a")[name][0] <= 65536


@pytest.mark.parametrize("name", WGMMA_PRODUCTS)
def test_no_other_device_has_code_for_wgmma(name):
    assert "MMA" not in kernels_of("sm_80")[name][2]
