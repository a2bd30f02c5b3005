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
POINTERS = {"target": "*i32", "label": "*i32", "wanted": "*i8", "any_wanted": "*i8"}
INTEGERS = ("rows", "columns", "width", "stride", "query_stride", "passage_stride")
ALIGNED = ("width", "stride", "query_stride", "passage_stride")


def operand(name, dtype, tiles):
    """The type of a factor of the product."""
    rows = tiles.rows if name == "query" else tiles.columns
    return f"tensordesc<{dtype}[{rows},{tiles.width}]>" if tiles.descriptors else f"*{dtype}"


def source(kernel, dtype, tiles, ids=True):
    """A kernel, that masks by id or does not, as the launcher would ask for it."""
    given = launch._options(tiles) | {"scores": None} | ({} if ids else {"label": None})
    constants = {name: value for name, value in given.items() if name in kernel.arg_names}
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


def compiled(kernel, target, tiles, dtype="bf16", ids=True):
    from triton.backends.compiler import GPUTarget

    gpu = GPUTarget("hip", target, 64) if isinstance(target, str) else GPUTarget("cuda", target, 32)
    options = {name: value for name, value in launch._options(tiles).items() if name.islower()}
    return triton.compile(source(kernel, dtype, tiles, ids), target=gpu, options=options)


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
            candidates = launch.candidates(default, SHARED_MEMORY[target])
            tried = {(tiles.stages, tiles.programs): tiles for tiles in reversed(candidates)}
            for (stages, programs), tiles in tried.items():
                quick = name == "exponentials" and stages == default.stages and target in (80, 90)
                marks = () if quick else pytest.mark.slow
                which = f"{name}-{target}-{stages} stages-{programs} programs"
                yield pytest.param(name, target, tiles, marks=marks, id=which)


@pytest.mark.parametrize(("name", "target", "tiles"), list(every_compilation()))
def test_a_kernel_stays_in_registers_and_uses_tensor_cores(tmp_path, name, target, tiles):
    kernel = compiled(getattr(kernels, name), target, tiles)
    assert kernel.metadata.shared * tiles.programs <= SHARED_MEMORY[target]
    if target == 80 and tiles.stages <= 3:  # 8.6, 8.9 and 12.0 run this code too, with less
        assert kernel.metadata.shared <= 99 * 1024
    if isinstance(target, str):
        code = kernel.asm["amdgcn"]
        assert re.search(r"\.vgpr_spill_count:\s*(\d+)", code)[1] == "0"
    else:
        code, usage = disassembled(kernel.asm["cubin"], tmp_path / "kernel.cubin")
        # Where two programs share a multiprocessor some values of a tile wait in memory, a dozen of thousands.
        assert int(re.search(r"STACK:(\d+)", usage)[1]) <= (64 if tiles.programs > 1 else 0)
        assert len(re.findall(r"\b(LDL|STL)\b", code)) <= (48 if tiles.programs > 1 else 0)
        assert int(re.search(r"REG:(\d+)", usage)[1]) * 32 * tiles.warps * tiles.programs <= 65536
    assert TENSOR_CORE[target] in code


@pytest.mark.parametrize("target", [80, 90])
def test_exponentials_leave_as_whole_vectors_rounded_in_pairs(tmp_path, target):
    """Single ones of two bytes each would take longer than the product."""
    kernel = compiled(kernels.exponentials, target, TARGETS[target], ids=False)
    code, usage = disassembled(kernel.asm["cubin"], tmp_path / "kernel.cubin")
    assert re.search(r"STACK:(\d+)", usage)[1] == "0"
    assert "STG.E.128" in code
    assert "STG.E.U16" not in code
    assert "F2FP.BF16" in code
    assert "F2F.BF16" not in code


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
