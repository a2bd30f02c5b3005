"""The machine code that nvcc made of csrc/cuda, in the library as it was built: no GPU is needed to read it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fastdense import _C

LIBRARY = Path(_C.__file__).with_name("_ops.so")
ARCHITECTURES = ["sm_80", "sm_90a", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sm_100a", "sm_120"))]
PRODUCTS = ["exponentials_kernel", "row_maxima_kernel"]


def tool(name):
    """From the CUDA toolkit, or as triton brings it."""
    if found := shutil.which(name):
        return found
    triton = pytest.importorskip("triton", reason=f"needs {name}")
    return Path(triton.__file__).parent / "backends/nvidia/bin" / name


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kernels(request):
    """{name: (registers, bytes of stack, machine code)} of each kernel for one architecture."""
    if not _C.build_info()["cuda"]:
        pytest.skip("fastdense was built without CUDA kernels")
    dump = [tool("cuobjdump"), "-arch", request.param]
    usage, code = (
        subprocess.run([*dump, what, LIBRARY], capture_output=True, text=True, check=True).stdout
        for what in ("-res-usage", "-sass")
    )
    found = {}
    for name in (*PRODUCTS, "smoothing_kernel", "row_epilogue_kernel"):
        stated = re.search(rf"Function \S*{name}\S*:\s*REG:(\d+) STACK:(\d+)", usage)
        body = re.search(rf"Function : \S*{name}\S*\n(.*?)(?=\n\s*Function :|\Z)", code, re.DOTALL)
        assert stated, f"no {name} for {request.param}"
        assert body, f"no {name} for {request.param}"
        found[name] = int(stated[1]), int(stated[2]), body[1]
    return found


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
