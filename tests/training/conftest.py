"""A tiny training run, and a held-out set for it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def train_tiny(tmp_path: Path, tiny_bert_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any) -> Any:
    """``train_tiny(*flags)`` trains 48 rows in batches of 8 (dropout on) and returns the output directory.

    Flags given later win, so that a test can change any of them.
    """
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)

    def train(*flags: str, name: str = "output") -> Path:
        from fastdense.train import main

        output = tmp_path / name
        fixed = (
            f"--output_dir {output} --model_name_or_path {tiny_bert_dir} --train_dir {rows} --do_train "
            "--per_device_train_batch_size 8 --train_n_passages 3 --q_max_len 16 --p_max_len 32 --max_steps 4 "
            "--learning_rate 1e-3 --logging_steps 1 --save_strategy no --disable_tqdm true"
        )
        main([*fixed.split(), *flags])
        return output

    return train


@pytest.fixture
def eval_dir(tmp_path: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any) -> Path:
    """A held-out set: the rows' own positives as corpus."""
    directory = tmp_path / "held-out"
    write_jsonl(directory / "corpus.jsonl", [passage for row in tiny_rows for passage in row["positive_passages"]])
    write_jsonl(
        directory / "queries.jsonl", [{"query_id": row["query_id"], "query": row["query"]} for row in tiny_rows]
    )
    judgements = [(row["query_id"], p["docid"]) for row in tiny_rows for p in row["positive_passages"]]
    (directory / "qrels.txt").write_text("".join(f"{query} 0 {passage} 1\n" for query, passage in judgements))
    return directory


@pytest.fixture
def log_of() -> Callable[[Path], list[dict[str, float]]]:
    """``log_of(output_dir)``: the lines of the log that report a step."""

    def read(output: Path) -> list[dict[str, float]]:
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        return [line for line in history if "loss" in line]

    return read
