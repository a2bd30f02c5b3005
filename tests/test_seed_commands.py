"""The training commands that Tevatron v1 documents run as they stand, with fastdense's modules in place of its own.

A shell runs them. On a machine without a GPU ``--fp16`` is left out, and the four processes of the first are two.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import free_port
from hub_stand_in import HubStandIn

FOUR_GPUS = r"""
python -m torch.distributed.launch --nproc_per_node=4 -m tevatron.driver.train \
  --output_dir model_nq \
  --dataset_name Tevatron/wikipedia-nq \
  --model_name_or_path bert-base-uncased \
  --do_train \
  --save_steps 20000 \
  --fp16 \
  --per_device_train_batch_size 32 \
  --train_n_passages 2 \
  --learning_rate 1e-5 \
  --q_max_len 32 \
  --p_max_len 156 \
  --num_train_epochs 40 \
  --negatives_x_device
"""

GRAD_CACHE = r"""
CUDA_VISIBLE_DEVICES=0 python -m tevatron.driver.train \
  --output_dir model_nq \
  --dataset_name Tevatron/wikipedia-nq \
  --model_name_or_path bert-base-uncased \
  --do_train \
  --save_steps 20000 \
  --fp16 \
  --per_device_train_batch_size 128 \
  --train_n_passages 2 \
  --learning_rate 1e-5 \
  --q_max_len 32 \
  --p_max_len 156 \
  --num_train_epochs 40 \
  --grad_cache \
  --gc_q_chunk_size 32 \
  --gc_p_chunk_size 16
"""

V3_8 = r"""
python -m tevatron.driver.jax_train \
  --output_dir model_nq \
  --dataset_name Tevatron/wikipedia-nq \
  --model_name_or_path bert-base-uncased \
  --do_train \
  --per_device_train_batch_size 16 \
  --train_n_passages 2 \
  --learning_rate 1e-5 \
  --q_max_len 32 \
  --p_max_len 156 \
  --num_train_epochs 40
"""

LAUNCH = "python -m torch.distributed.launch --nproc_per_node=4"
LAUNCHERS = {
    "launch": "python -m torch.distributed.launch --nproc_per_node=2 --master_port={port}",
    "torchrun": "torchrun --nproc_per_node=2 --master_port={port}",
    "accelerate": "accelerate launch --multi_gpu --num_processes=2 --main_process_port={port}",
}


def two_processes(launcher: str) -> dict[str, str]:
    """How the first command becomes two processes on a CPU, on a port that no test beside this one uses."""
    return {LAUNCH: LAUNCHERS[launcher].format(port=free_port()), "--fp16 ": ""}


def shell(
    command: str, hub: HubStandIn, folder: Path, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` in ``folder`` with this interpreter as ``python``."""
    environment = {**hub.environment(folder / "home"), **(variables or {})}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["CUDA_VISIBLE_DEVICES"] = ""  # unless the command itself names a device
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def ours(command: str, replacements: dict[str, str]) -> str:
    for old, new in {"tevatron.driver.": "fastdense.", **replacements}.items():
        assert old in command
        command = command.replace(old, new)
    return command.strip()


def assert_trained(folder: Path, steps: int) -> None:
    from transformers import AutoModel, AutoTokenizer

    output = folder / "model_nq"
    state = json.loads((output / "trainer_state.json").read_text())
    assert state["global_step"] == steps
    for directory in (output, output / f"checkpoint-{steps}"):
        assert AutoModel.from_pretrained(directory).config.hidden_size == 32
        assert AutoTokenizer.from_pretrained(directory).sep_token == "[SEP]"
    losses = [entry["train_loss"] for entry in state["log_history"] if "train_loss" in entry]
    assert len(losses) == 1
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.parametrize("epochs", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_grad_cache_command(epochs: int, seed_hub: HubStandIn, tmp_path: Path) -> None:
    changes = {"epochs 40": f"epochs {epochs}", **({} if torch.cuda.is_available() else {"--fp16 ": ""})}
    result = shell(ours(GRAD_CACHE, changes), seed_hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert_trained(tmp_path, steps=epochs)  # 128 rows are one batch


@pytest.mark.distributed
@pytest.mark.parametrize("epochs", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_distributed_command(epochs: int, seed_hub: HubStandIn, tmp_path: Path) -> None:
    result = shell(ours(FOUR_GPUS, {**two_processes("launch"), "epochs 40": f"epochs {epochs}"}), seed_hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert_trained(tmp_path, steps=2 * epochs)  # two ranks of 32 make two steps an epoch


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_other_launchers(launcher: str, seed_hub: HubStandIn, tmp_path: Path) -> None:
    command = ours(FOUR_GPUS, {**two_processes(launcher), "epochs 40": "epochs 1"})
    result = shell(command, seed_hub, tmp_path)
    assert result.returncode == 0, result.stderr
    assert_trained(tmp_path, steps=2)


@pytest.mark.parametrize(
    "cache", [pytest.param("", marks=pytest.mark.slow), " --grad_cache"], ids=["plain", "grad_cache"]
)
@pytest.mark.parametrize("epochs", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_tpu_command(epochs: int, cache: str, seed_hub: HubStandIn, tmp_path: Path) -> None:
    """On eight simulated devices, as many as a V3-8 has."""
    pytest.importorskip("jaxlib")
    devices = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    devices["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling takes longer than running
    result = shell(ours(V3_8, {"epochs 40": f"epochs {epochs}"}) + cache, seed_hub, tmp_path, devices)
    assert result.returncode == 0, result.stderr
    assert_trained(tmp_path, steps=epochs)  # 8 times 16 rows are one batch


def test_fp16_without_a_gpu_is_refused_in_a_sentence(seed_hub: HubStandIn, tmp_path: Path) -> None:
    result = shell(ours(GRAD_CACHE, {"CUDA_VISIBLE_DEVICES=0": "CUDA_VISIBLE_DEVICES="}), seed_hub, tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --fp16 needs a GPU")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "model_nq").exists()
