"""What becomes of the memory that a step frees."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdense.training import freed_memory

ROOT = Path(__file__).parents[2]

TWO_STEPS = """
import resource
import torch
from fastdense.training import freed_memory
{call}

def step():
    return [torch.ones(512 * 1024) for _ in range(100)]  # 200 MiB in blocks of 2 MiB

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


# Sixty layers, each with a tensor that lives on, one that does not, and what little things take of glibc's slivers.
FORWARD_PASS = """
import ctypes
import torch
from benches.machine import resident_kib
from fastdense.training import freed_memory
{call}

libc = ctypes.CDLL(None)
kept = []
before = resident_kib("VmRSS")
for _ in range(60):
    freed = torch.ones(1024, 384)
    kept.append(torch.ones(1024, 384))
    for size in (24, 40, 56, 72) * 10:
        libc.malloc(size)
    del freed
print(resident_kib("VmRSS") - before >> 10)
"""

GIVEN_BACK = """
import torch
from benches.machine import resident_kib
from fastdense.grad_cache.memory import give_back_freed
from fastdense.training import freed_memory
{call}

tensors = [torch.ones(512 * 1024) for _ in range(100)]  # 200 MiB in blocks of 2 MiB
del tensors
before = resident_kib("VmRSS")
give_back_freed("cpu")
print(before - resident_kib("VmRSS") >> 10)
"""

REUSE = "freed_memory.reuse_freed_memory()"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")


def printed_by(program: str, **environment: str) -> int:
    variables = {name: value for name, value in os.environ.items() if name not in freed_memory.CHOSEN_BY_THE_USER}
    command = [sys.executable, "-c", program]
    where = {"cwd": ROOT, "env": {**variables, **environment}}
    done = subprocess.run(command, **where, check=True, capture_output=True, text=True)
    return int(done.stdout)


def faults_of_a_second_step(call: str, **environment: str) -> int:
    return printed_by(TWO_STEPS.format(call=call), **environment)


def test_a_second_step_finds_the_memory_of_the_first() -> None:
    pages = 200 * 2**20 // 4096
    assert faults_of_a_second_step("") > pages / 2  # else this test shows nothing
    assert faults_of_a_second_step(REUSE) < pages / 10
    assert faults_of_a_second_step(REUSE, MALLOC_TRIM_THRESHOLD_="131072") > pages / 2


def test_a_freed_tensor_leaves_room_for_another_of_its_size() -> None:
    held = 60 * 1024 * 384 * 4 >> 20
    keep_only = "import ctypes; libc = ctypes.CDLL(None); libc.mallopt(-1, -1); libc.mallopt(-3, 1 << 25)"
    assert printed_by(FORWARD_PASS.format(call=keep_only)) > 1.6 * held  # else this test shows nothing
    assert held <= printed_by(FORWARD_PASS.format(call=REUSE)) < 1.2 * held


def test_what_is_kept_can_be_given_back() -> None:
    assert printed_by(GIVEN_BACK.format(call="")) < 20  # else this test shows nothing
    assert printed_by(GIVEN_BACK.format(call=REUSE)) > 180


TENSORS = """
import torch
from fastdense.training import freed_memory
before = [torch.ones(300, 300), torch.ones(300, 300).to_mkldnn()]
freed_memory.reuse_freed_memory()
del before
torch.ones(300, 300).to_mkldnn()
sizes = [1, 3, 64, 65, 4095, 1 << 20]
assert all(torch.empty(size, dtype=torch.uint8).data_ptr() % 64 == 0 for size in sizes)
assert torch.empty(0).data_ptr() == 0
assert torch.ones(3).resize_(1000).fill_(2).sum() == 2000
assert torch.arange(5).share_memory_().tolist() == [0, 1, 2, 3, 4]
try:
    torch.empty(1 << 50)
except RuntimeError as error:
    from fastdense.grad_cache.memory import is_out_of_memory
    assert is_out_of_memory(error), error
else:
    raise AssertionError("a petabyte")
from torch.profiler import profile
with profile(profile_memory=True) as found:
    torch.ones(1 << 20)
assert max(event.self_cpu_memory_usage for event in found.key_averages()) == 4 << 20
print(0)
"""


def test_tensors_are_as_before() -> None:
    """Freed by whom they came from, aligned, empty, resized, shared, too large, and seen by the profiler."""
    assert printed_by(TENSORS) == 0


OTHER_MALLOC = """
#include <stddef.h>
void* __libc_malloc(size_t);
void* malloc(size_t bytes) { return __libc_malloc(bytes); }
"""


def test_another_malloc_keeps_its_own_ways(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "other.c").write_text(OTHER_MALLOC)
    library = tmp_path / "other.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "other.c"], check=True)
    pages = 200 * 2**20 // 4096
    assert faults_of_a_second_step(REUSE, LD_PRELOAD=str(library)) > pages / 2


def test_another_torch_keeps_its_own_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Its allocator need not look as it did when fastdense was built. No other torch is at hand: this one says so."""
    for name in freed_memory.CHOSEN_BY_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "__version__", "99.1.0")
    freed_memory.reuse_freed_memory()
    assert "99.1.0: install it again" in caplog.text
