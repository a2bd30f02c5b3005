"""The project's commands as a user would type them: shown, then run."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fastdense.errors import UserError

Flags = Mapping[str, object]

ENCODER: Flags = {"pooling": "mean", "normalize": True, "q_max_len": 24, "p_max_len": 96}

NOTHING: Mapping[str, str] = MappingProxyType({})
BATCH, EVALUATION_BATCH = 128, 64
DEVICES = 8


@dataclass(frozen=True)
class Driver:
    """The commands that train and encode, the devices that share a batch, and the environment that both need."""

    train: str
    encode: str
    devices: int
    environment: Mapping[str, str]


TORCH = Driver("fastdense.train", "fastdense.encode", devices=1, environment=NOTHING)
JAX = Driver(
    "fastdense.jax_train",
    "fastdense.jax_encode",
    devices=DEVICES,
    environment={"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"},
)


def command_line(module: str, flags: Flags, environment: Mapping[str, str] = NOTHING) -> str:
    """``NAME=value python -m module --flag value ...``, a flag a line, ready to be copied."""
    groups = [shlex.join(_words(name, value)) for name, value in flags.items()]
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " \\\n    ".join([" ".join([*settings, f"python -m {module}"]), *groups])


def show_and_run(module: str, flags: Flags, environment: Mapping[str, str] = NOTHING) -> None:
    """Print a command and run it with this interpreter.

    Raises:
        UserError: the command failed; it has printed why.
    """
    print(f"$ {command_line(module, flags, environment)}", flush=True)
    words = [word for name, value in flags.items() for word in _words(name, value)]
    finished = subprocess.run([sys.executable, "-m", module, *words], env={**os.environ, **environment})
    print(flush=True)
    if finished.returncode:
        raise UserError(f"python -m {module} ended with exit status {finished.returncode}; its output above says why")


def _words(name: str, value: object) -> list[str]:
    """A flag whose value is True stands alone, a list gives several values."""
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def training_flags(driver: Driver, data: Path, output_dir: Path, steps: int, eval_steps: int) -> Flags:
    """The flags of the demo's training command; the batch is the same on any number of devices."""
    return {
        "model_name_or_path": data / "model",
        "train_dir": data / "train.jsonl",
        "output_dir": output_dir,
        "overwrite_output_dir": True,
        "do_train": True,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH // driver.devices,
        "train_n_passages": 1,
        "learning_rate": 2e-3,
        "temperature": 0.05,
        **ENCODER,
        "mask_duplicates": True,
        "eval_dir": data / "dev",
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": eval_steps,
        "per_device_eval_batch_size": EVALUATION_BATCH // driver.devices,
        "logging_steps": 5,
        "save_strategy": "no",
        "seed": 42,
    }


def retrieve(driver: Driver, model: Path, test: Path, questions: Path, output_dir: Path, encoder_flags: Flags) -> None:
    """Encode, search and measure the set in ``test``, further ``questions`` with it.

    ``output_dir`` then holds ``run.txt`` (query, passage and score, separated by tabs) and ``measures.json``.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    passages, queries = output_dir / "passages.safetensors", output_dir / "queries.safetensors"
    batch = {"per_device_eval_batch_size": EVALUATION_BATCH // driver.devices}
    encoder = {"model_name_or_path": model, **encoder_flags, **batch}
    corpus = {"encode_in_path": test / "corpus.jsonl", "encoded_save_path": passages}
    show_and_run(driver.encode, {**encoder, **corpus}, driver.environment)
    texts = [test / "queries.jsonl", questions]
    typed = {"encode_is_qry": True, "encode_in_path": texts, "encoded_save_path": queries}
    show_and_run(driver.encode, {**encoder, **typed}, driver.environment)
    search = {"query_reps": queries, "passage_reps": passages, "depth": 100, "save_text": True}
    show_and_run("fastdense.search", {**search, "save_ranking_to": output_dir / "run.txt"})
    measures = {"qrels": test / "qrels.txt", "run": output_dir / "run.txt", "measures": ["mrr@10", "recall@10"]}
    show_and_run("fastdense.evaluate", {**measures, "output": output_dir / "measures.json"})
