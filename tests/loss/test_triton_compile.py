"""The Triton kernels, compiled for GPUs that are not here: registers, spills, shared memory, instructions."""

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

from fastdense.loss.implementations.triton import kernels, launch  # noqa: E402

pytestmark = pytest.mark.skipif(kernels.INTERPRETED, reason="kernels of the interpreter are not compiled")

TARGETS = {80: launch.AMPERE, 90: launch.HOPPER, 100: launch.HOPPER, "gfx942": launch.AMD}
TENSOR_CORE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", "gfx942": "v_mfma"}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, "gfx942": 64 * 1024}
POINTERS = {"target": "*i32", "label": "*i32", "wanted": "*i8"}
INTEGERS = ("rows", "columns", "width", "stride", "query_stride", "passage_stride")
ALIGNED = ("width", "stride", "query_stride", "passage_stride")


def operand(name, dtype, tiles):
    """The type of a factor of the product."""
    rows = tiles.rows if name == "query" else tiles.columns
    return f"tensordesc<{dtype}[{rows},{tiles.width}]>" if tiles.descriptors else f"*{dtype}"


def source(kernel, dtype, tiles):
    """A kernel that masks by id, as the launcher would ask for it."""
    constants = {
        name: value for name, value in (launch._options(tiles) | {"scores": None}).items() if name in kernel.arg_names
    }
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("query", "passage"):
            signature[name] = operand(name, dtype, tiles)
        elif name in INTEGERS:
            signature[name] = "i32"
        else:
            signature[name] = f"*{dtype}" if name == "out" else POINTERS.get(name, "*fp32")
    divisible = [["tt.divisibility", 16]]
    aligned = {(i,): divisible for i, name in enumerate(signature) if signature[name][0] == "*" or name in ALIGNED}
    return triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)


def compiled(kernel, target, tiles, dtype="bf16"):
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget("hip", target, 64) if isinstance(target, str) else GPUTarget("cuda", target, 32)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": True}
    return triton.compile(source(kernel, dtype, tiles), target=gpu, options=options)


def disassembled(cubin, path):
    """The machine code, and what cuobjdump says of registers and stack."""
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    path.write_bytes(cubin)
    usage = subprocess.run([tools / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    code = subprocess.run([tools / "nvdisasm", path], capture_output=True, text=True, check=True)
    return code.stdout, usage.stdout


def every_compilation():
    """(kernel, target, tiles), once for what tuning tries: the order of tiles is no matter of registers or memory."""
    for name in ("exponentials", "row_maxima_and_sums"):
        for target, default in TARGETS.items():
            tried = {tiles.stages: tiles for tiles in reversed(launch.candidates(default, SHARED_MEMORY[target]))}
            for tiles in tried.values():
                quick = name == "exponentials" and tiles.stages == default.stages and target in (80, 90)
                marks = () if quick else pytest.mark.slow
                yield pytest.param(name, target, tiles, marks=marks, id=f"{name}-{target}-{tiles.stages} stages")


@pytest.mark.parametrize(("name", "target", "tiles"), list(every_compilation()))
def test_a_kernel_stays_in_registers_and_uses_tensor_cores(tmp_path, name, target, tiles):
    kernel = compiled(getattr(kernels, name), target, tiles)
    assert kernel.metadata.shared <= SHARED_MEMORY[target]
    if target == 80 and tiles.stages <= 3:  # 8.6, 8.9 and 12.0 run this code too, with less
        assert kernel.metadata.shared <= 99 * 1024
    if isinstance(target, str):
        code = kernel.asm["amdgcn"]
        assert re.search(r"\.vgpr_spill_count:\s*(\d+)", code)[1] == "0"
    else:
        code, usage = disassembled(kernel.asm["cubin"], tmp_path / "kernel.cubin")
        assert re.search(r"STACK:(\d+)", usage)[1] == "0"
        assert not re.search(r"\b(LDL|STL)\b", code)
        assert int(re.search(r"REG:(\d+)", usage)[1]) * 32 * tiles.warps <= 65536
    assert TENSOR_CORE[target] in code


def test_factors_arrive_asynchronously(tmp_path):
    """Ampere's asynchronous copies, Hopper's tensor memory accelerator."""
    for target, instruction in ((80, "LDGSTS"), (90, "UTMALDG")):
        kernel = compiled(kernels.exponentials, target, TARGETS[target])
        code, _ = disassembled(kernel.asm["cubin"], tmp_path / f"{target}.cubin")
        assert instruction in code


def test_addresses_of_scores_have_64_bits():
    """Their number exceeds 2 ** 31 where row times stride does."""
    code = compiled(kernels.exponentials, 80, TARGETS[80]).asm["ttir"]
    products = re.findall(r"arith\.muli .* : tensor<\d+x1x(i\d+)>", code)
    assert products
    assert set(products) == {"i64"}
