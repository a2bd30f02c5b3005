"""What the C library does with the memory that a step frees."""

import os
import subprocess
import sys

import pytest

TWO_STEPS = """
import resource
import torch
from fastdense.training.freed_memory import keep_freed_memory
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


def faults_of_a_second_step(call: str, **environment: str) -> int:
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    variables = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "-c", TWO_STEPS.format(call=call)]
    done = subprocess.run(command, env={**variables, **environment}, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_second_step_finds_the_memory_of_the_first() -> None:
    pages = 200 * 2**20 // 4096
    assert faults_of_a_second_step("") > pages / 2  # else this test shows nothing
    assert faults_of_a_second_step("keep_freed_memory()") < pages / 10
    assert faults_of_a_second_step("keep_freed_memory()", MALLOC_TRIM_THRESHOLD_="131072") > pages / 2
