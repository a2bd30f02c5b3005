"""``fastdense.jax_encode`` writes what ``fastdense.encode`` writes."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdense.retrieval.representations import Representations, read_representations

pytestmark = pytest.mark.usefixtures("quick_compiler")


def encode(driver: str, model: Path, texts: Path, output: Path, *flags: str) -> Representations:
    fixed = f"--model_name_or_path {model} --encode_in_path {texts} --encoded_save_path {output}"
    importlib.import_module(f"fastdense.{driver}").main([*fixed.split(), *flags])
    return read_representations(output)


@pytest.mark.parametrize("flags", [(), ("--encode_is_qry", "--normalize", "--pooling", "mean", "--q_max_len", "9")])
def test_both_commands_write_the_same(
    flags: tuple[str, ...], tmp_path: Path, tiny_bert_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any
) -> None:
    """Of 29 texts two to a device are one full batch and one that is filled up."""
    rows = [{"text_id": row["query_id"], "text": row["query"]} for row in tiny_rows[:29]]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    size = ("--per_device_eval_batch_size", "2")
    ours, theirs = (
        encode(driver, tiny_bert_dir, texts, tmp_path / driver, *flags, *size) for driver in ("jax_encode", "encode")
    )
    assert list(ours.ids) == list(theirs.ids)
    np.testing.assert_allclose(ours.vectors, theirs.vectors, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_near(
    tmp_path: Path, tiny_bert_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any
) -> None:
    rows = [{"text_id": row["query_id"], "text": row["query"]} for row in tiny_rows[:5]]
    texts = write_jsonl(tmp_path / "texts.jsonl", rows)
    rough = encode("jax_encode", tiny_bert_dir, texts, tmp_path / "rough", "--bf16").vectors
    exact = encode("encode", tiny_bert_dir, texts, tmp_path / "exact").vectors
    assert not np.allclose(rough, exact, rtol=1e-5)
    np.testing.assert_allclose(rough, exact, atol=0.05 * np.abs(exact).max())
