"""What runs here: versions of the libraries, the machine, the command. Imports none of them."""

import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = (
    *("torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface_hub", "tokenizers", "numpy"),
    *("peft", "triton", "jax", "flax", "optax", "libtpu", "faiss-cpu", "ir-measures", "sentence-transformers"),
    *("matplotlib", "tensorboard", "wandb", "trackio"),
)
_SECRETS = ("--hub_token", "--hub-token")


@functools.cache
def version(name: str) -> str | None:
    """The version of an installed distribution; None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Python, this package and every library that is installed: name -> version."""
    found = {name: version(name) for name in ("fastdense", *LIBRARIES)}
    return {"python": platform.python_version(), **{name: number for name, number in found.items() if number}}


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.processor() or platform.machine()


def gpus() -> list[str]:
    """The GPUs that torch sees, by name."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def emulates_bf16() -> bool:
    """Whether this CPU has no instructions for products of bfloat16; False where torch does not know."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities) and not any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def command() -> str:
    """The command line of this process as a shell takes it, without secrets."""
    words = list(sys.orig_argv)
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if name in _SECRETS and equals:
            words[index] = f"{name}=..."
        elif name in _SECRETS and index + 1 < len(words):
            words[index + 1] = "..."
    return shlex.join([Path(words[0]).name, *words[1:]])


def git_commit(directory: str | Path) -> str | None:
    """The commit that ``directory`` is a work tree of, ``+changes`` behind it if files differ; None outside of git."""
    if shutil.which("git") is None:
        return None

    def ask(*words: str) -> str | None:
        answer = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and ask("status", "--porcelain", "--untracked-files=no") else commit


def facts(processes: int = 1) -> dict[str, Any]:
    """Everything that a run's record says about where it ran."""
    return {
        "command": command(),
        "working_directory": str(Path.cwd()),
        "git_commit": git_commit(Path.cwd()),
        "processes": processes,
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "gpus": gpus(),
        },
        "versions": versions(),
    }
