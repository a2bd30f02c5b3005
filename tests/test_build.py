"""What the build demands, what it leaves behind, and what importing the result costs."""

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest

import fastdense
from fastdense import _C

ROOT = Path(__file__).parent.parent
CMAKE = shutil.which("cmake")


def bare_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("FASTDENSE_TORCH", "VIRTUAL_ENV", "PYTHONPATH")}


def find_torch(python: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run CMake's finder as a script; with torch it ends at the first command that a script may not use."""
    return subprocess.run(
        [CMAKE, f"-DPython_EXECUTABLE={python}", "-P", str(ROOT / "cmake" / "FindStableTorch.cmake")],
        env=bare_environment() | variables,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def python_without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    return directory / "bin" / "python"


@pytest.mark.skipif(CMAKE is None, reason="needs cmake")
def test_without_torch_the_build_stops_with_one_sentence(python_without_torch):
    if subprocess.run([python_without_torch, "-c", "import torch"], capture_output=True).returncode == 0:
        pytest.skip("the base interpreter has torch")
    done = find_torch(python_without_torch)
    assert done.returncode != 0
    message = " ".join(done.stderr.split())
    assert f"torch >= 2.10 was not found beside {python_without_torch}: install torch first, then fastdense" in message


@pytest.mark.skipif(CMAKE is None, reason="needs cmake")
def test_the_environment_variable_names_torch(python_without_torch):
    import torch

    done = find_torch(python_without_torch, FASTDENSE_TORCH=str(Path(torch.__file__).parent))
    assert "was not found" not in done.stderr


def test_the_finder_finds_the_torch_beside_the_interpreter():
    """Also from pip's isolated build environment, which hides site-packages."""
    import torch

    hidden = "import sys; sys.path = [path for path in sys.path if 'site-packages' not in path]"
    script = str(ROOT / "cmake" / "find_torch.py")
    done = subprocess.run(
        [sys.executable, "-c", f"{hidden}; import runpy; runpy.run_path({script!r})"],
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout) == Path(torch.__file__).parent


def test_build_info():
    info = _C.build_info()
    assert info["version"] == fastdense.__version__ == metadata.version("fastdense")
    assert tuple(int(part) for part in info["torch"].split(".")[:2]) >= (2, 10)
    assert set(info) == {"version", "torch", "cuda", "cuda_architectures", "compiler"}
    assert bool(info["cuda"]) == bool(info["cuda_architectures"])


def test_cpu_capabilities_agree_with_the_kernel():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("needs /proc/cpuinfo")
    flags = set(cpuinfo.read_text().split())
    avx512 = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq"}
    assert _C.cpu_capabilities() == {
        "avx2": {"avx2", "fma"} <= flags,
        "avx512": avx512 <= flags,
        "avx512_bf16": avx512 | {"avx512_bf16"} <= flags,
        "amx_bf16": avx512 | {"avx512_bf16", "amx_tile", "amx_bf16"} <= flags,
    }


def test_the_libraries_lie_side_by_side():
    assert Path(_C.__file__).with_name("_ops.so").exists()


def test_import_is_lazy_and_quick():
    """Nothing heavy beside torch, and under 0.1 s on top of it (the best of three; 0.3 s on a busy machine)."""
    code = (
        "import sys, time, torch\n"
        "before = time.process_time()\n"
        "import fastdense\n"
        "print(time.process_time() - before)\n"
        "heavy = 'triton', 'transformers', 'datasets', 'jax', 'faiss', 'sentence_transformers', 'matplotlib'\n"
        "print([n for n in heavy if n in sys.modules])\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken, heavy = done.stdout.splitlines()
        assert heavy == "[]"
        if float(taken) < 0.3:
            return
    raise AssertionError(f"import fastdense takes {taken} s of its own")


def test_the_operators_do_not_need_a_gpu_or_its_libraries():
    """CUDA code may be in _ops.so; the CUDA libraries may not be among what it needs to load."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("needs readelf")
    library = Path(_C.__file__).with_name("_ops.so")
    done = subprocess.run([readelf, "-d", str(library)], capture_output=True, text=True, check=True)
    needed = [line.split("[")[1].rstrip("]") for line in done.stdout.splitlines() if "(NEEDED)" in line]
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or "python" in name]


@pytest.mark.parametrize("source", ["instruction_set.cpp", "gemm/generic.cpp"])
def test_the_kernels_of_any_cpu_compile_for_arm(source):
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs aarch64-linux-gnu-g++")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, str(ROOT / "csrc" / "cpu" / source)], check=True)
