"""Counting what is there and what a graph holds."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastdense.grad_cache.memory import (
    _available_on_host,
    activation_bytes,
    available_bytes,
    in_short,
    is_out_of_memory,
)

N = 1000


def chain(x):
    return x.exp().exp().sum()  # exp keeps its result


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: chain(x), 2 * 4 * N + 4),
        (lambda x: checkpoint(chain, x * 2, use_reentrant=False), 4 * N + 4),
        (lambda x: chain(x.detach()), 4),
        (lambda x: x.view(10, 100).t().exp_, 0),
    ],
    ids=["graph", "checkpoint", "no-graph", "views"],
)
def test_the_bytes_that_a_graph_holds(run, expected):
    x = torch.zeros(N, requires_grad=True)
    _graph, size = activation_bytes(lambda: run(x), "cpu")
    assert size == pytest.approx(expected, abs=64)  # constants of a byte or two


def test_measuring_changes_no_bits():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.3, batch_first=True)
    x = torch.rand(3, 5, 16)
    torch.manual_seed(0)
    expected = layer(x)
    torch.manual_seed(0)
    found, size = activation_bytes(lambda: layer(x), "cpu")
    assert torch.equal(found, expected)
    assert size > 10 * x.nbytes


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A machine with 4000 KiB available and a container's files."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")

    def available(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_text(content)
        return _available_on_host(tmp_path, tmp_path)

    return available


def test_available_memory_is_the_machine_s_or_the_container_s(host, monkeypatch):
    assert host() == 4000 * 1024
    statistics = {"memory__current": "900000", "memory__stat": "anon 1\ninactive_file 100000\n"}
    assert host(memory__max="max\n", **statistics) == 4000 * 1024
    assert host(memory__max="1000000\n", **statistics) == 200_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host() == 50_000


def test_available_memory_ends_at_the_process_s_own_limits(host, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # of the machine, not of such a limit
    process = tmp_path / "self"
    process.mkdir()
    (process / "status").write_text("Name:\tpython\nGroups:\nVmSize:\t    700 kB\nVmData:\t 400 kB\n")
    for limits, expected in [
        ("Max data size unlimited unlimited bytes\nMax address space 1024000 unlimited bytes\n", 300 * 1024),
        ("Max data size 512000 unlimited bytes\nMax address space 1024000 unlimited bytes\n", 100 * 1024),
        ("Max address space 600000 unlimited bytes\n", 0),
        ("Max address space unlimited unlimited bytes\n", 1000 * 1024),
    ]:
        (process / "limits").write_text(limits)
        assert host() == expected


def test_a_system_without_these_files_does_not_tell(tmp_path):
    assert _available_on_host(tmp_path, tmp_path) is None


def test_this_machine_has_memory():
    assert available_bytes("cpu") is None or available_bytes("cpu") > 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA out of memory"),
        (RuntimeError("can't allocate memory: a tensor of 8 bytes"), "can't allocate memory: a tensor of 8 bytes"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory. 9"),
            "DefaultCPUAllocator: can't allocate memory",
        ),
        (RuntimeError("could not create a primitive"), "could not create a primitive"),
        (RuntimeError("could not execute a primitive"), "could not execute a primitive"),
        (RuntimeError("could not create a memory object"), "could not create a memory object"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (MemoryError(), "MemoryError"),
    ],
    ids=str,
)
def test_an_allocation_that_failed_is_known_by_its_message(error, reason):
    assert is_out_of_memory(error)
    assert in_short(error) == reason


def test_torch_s_own_message_is_known():
    with pytest.raises(RuntimeError) as found:
        torch.UntypedStorage(1 << 55)
    assert is_out_of_memory(found.value)
    assert "allocate memory" in in_short(found.value)
