"""Several processes, as on several hosts, take the steps of one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import free_port
from transformers import TrainerState

from fastdense.errors import UserError
from fastdense.jax.processes import check_all_known

ROOT = Path(__file__).parents[2]


def test_processes_that_jax_does_not_know_are_refused() -> None:
    check_all_known(1)
    with pytest.raises(UserError, match="2 processes were started that JAX knows nothing of: .* without torchrun"):
        check_all_known(2)


def start(flags: list[str], process: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    """One of two processes with four devices each."""
    flags_of_xla = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"  # the last one counts
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags_of_xla}
    devices["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # as in this process: compiling takes longer than running
    address = f"--jax_coordinator_address 127.0.0.1:{port} --jax_num_processes 2 --jax_process_id {process}"
    command = [sys.executable, "-m", "fastdense.jax_train", *flags, *address.split()]
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **devices}, stdout=file, stderr=file)


@pytest.mark.distributed
@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_are_one(measured: bool, tiny_run: Callable[..., Path], eval_dir: Path, tmp_path: Path) -> None:
    """Rows, loss, measured vectors and files, with lengths that differ between the processes."""
    flags = "--save_strategy steps --save_steps 4 --mask_duplicates --grad_cache --gc_p_chunk_size 2 "
    flags += f"--eval_dir {eval_dir} --eval_strategy steps --eval_steps 2" if measured else ""
    one = tiny_run(*flags.split(), name="one")
    words = tiny_run.words(*flags.split(), name="two")  # type: ignore[attr-defined]
    port = free_port()
    logs = [tmp_path / f"process-{process}.log" for process in range(2)]
    processes = [start(words, process, port, log) for process, log in enumerate(logs)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0], logs[0].read_text() + logs[1].read_text()
    expected, found = (TrainerState.load_from_json(str(out / "trainer_state.json")) for out in (one, tmp_path / "two"))
    for theirs, ours in zip(expected.log_history, found.log_history, strict=True):
        for name in ("loss", "grad_norm", "accuracy", "eval_mrr@10"):
            assert ours.get(name, 0) == pytest.approx(theirs.get(name, 0), rel=1e-5)
    assert (tmp_path / "two" / "checkpoint-4" / "rng_state_1.pth").is_file()
