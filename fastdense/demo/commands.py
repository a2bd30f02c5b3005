"""The project's commands as a user would type them: shown, then run."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fastdense.errors import UserError

Flags = Mapping[str, object]

ENCODER: Flags = {"pooling": "mean", "normalize": True, "q_max_len": 24, "p_max_len": 96}


def command_line(module: str, flags: Flags) -> str:
    """``python -m module --flag value ...``, a flag a line, ready to be copied."""
    groups = [shlex.join(_words(name, value)) for name, value in flags.items()]
    return " \\\n    ".join([f"python -m {module}", *groups])


def show_and_run(module: str, flags: Flags) -> None:
    """Print a command and run it with this interpreter.

    Raises:
        UserError: the command failed; it has printed why.
    """
    print(f"$ {command_line(module, flags)}", flush=True)
    words = [word for name, value in flags.items() for word in _words(name, value)]
    finished = subprocess.run([sys.executable, "-m", module, *words])
    print(flush=True)
    if finished.returncode:
        raise UserError(f"python -m {module} ended with exit status {finished.returncode}; its output above says why")


def _words(name: str, value: object) -> list[str]:
    """A flag whose value is True stands alone, a list gives several values."""
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def training_flags(data: Path, output_dir: Path, steps: int, eval_steps: int) -> Flags:
    """The flags of the demo's ``python -m fastdense.train``."""
    return {
        "model_name_or_path": data / "model",
        "train_dir": data / "train.jsonl",
        "output_dir": output_dir,
        "overwrite_output_dir": True,
        "do_train": True,
        "max_steps": steps,
        "per_device_train_batch_size": 128,
        "train_n_passages": 1,
        "learning_rate": 2e-3,
        "temperature": 0.05,
        **ENCODER,
        "mask_duplicates": True,
        "eval_dir": data / "dev",
        "eval_strategy": "steps",
        "eval_on_start": True,
        "eval_steps": eval_steps,
        "per_device_eval_batch_size": 64,
        "logging_steps": 5,
        "save_strategy": "no",
        "seed": 42,
    }


def retrieve(model: Path, test: Path, questions: Path, output_dir: Path, encoder_flags: Flags) -> None:
    """Encode, search and measure the set in ``test``, further ``questions`` with it.

    ``output_dir`` then holds ``run.txt`` (query, passage and score, separated by tabs) and ``measures.json``.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    passages, queries = output_dir / "passages.safetensors", output_dir / "queries.safetensors"
    encoder = {"model_name_or_path": model, **encoder_flags, "per_device_eval_batch_size": 64}
    show_and_run(
        "fastdense.encode", {**encoder, "encode_in_path": test / "corpus.jsonl", "encoded_save_path": passages}
    )
    texts = [test / "queries.jsonl", questions]
    show_and_run(
        "fastdense.encode", {**encoder, "encode_is_qry": True, "encode_in_path": texts, "encoded_save_path": queries}
    )
    search = {"query_reps": queries, "passage_reps": passages, "depth": 100, "save_text": True}
    show_and_run("fastdense.search", {**search, "save_ranking_to": output_dir / "run.txt"})
    measures = {"qrels": test / "qrels.txt", "run": output_dir / "run.txt", "measures": ["mrr@10", "recall@10"]}
    show_and_run("fastdense.evaluate", {**measures, "output": output_dir / "measures.json"})
