"""A tiny training run."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def train_tiny(
    tmp_path: Path, tiny_bert_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any, no_picture: None
) -> Any:
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
