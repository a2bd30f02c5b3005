"""``fastdense.jax_encode`` writes what ``fastdense.encode`` writes."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdense.retrieval.representations import Representations, read_representations


def encode(driver: str, model: Path, texts: Path, output: Path, *flags: str) -> Representations:
    fixed = f"--model_name_or_path {model} --encode_in_path {texts} --encoded_save_path {output}"
    importlib.import_module(f"fastdense.{driver}").main([*fixed.split(), *flags])
    return read_representations(output)


@pytest.mark.parametrize(
    "flags",
    [[], "--encode_is_qry --normalize --pooling mean --q_max_len 9 --truncate_dim 8".split()],
)
def test_both_commands_write_the_same(
    flags: list[str], tmp_path: Path, tiny_bert_dir: Path, tiny_rows: list[dict[str, Any]], write_jsonl: Any
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


def test_both_trainers_directories_retrieve_the_same_with_every_reader(
    tiny_run: Callable[..., Path], eval_dir: Path, tmp_path: Path
) -> None:
    """The ten best passages of each query, but for passages that score the same."""
    trained = [tiny_run("--normalize", driver=driver) for driver in ("train", "jax_train")]
    first, *others = [scores for output in trained for scores in all_scores(output, eval_dir, tmp_path / "vectors")]
    assert len(others) == 5
    tenth_best = np.sort(first, axis=1)[:, -10:-9]
    for scores in others:
        ten = np.argsort(-scores, axis=1)[:, :10]
        assert (np.take_along_axis(first, ten, axis=1) >= tenth_best - 1e-5).all()


def all_scores(model: Path, eval_dir: Path, folder: Path) -> list[np.ndarray]:
    """[queries, passages] by ``fastdense.encode``, ``fastdense.jax_encode`` and sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    scores = []
    for driver in ("encode", "jax_encode"):
        name, limits = f"{model.name}-{driver}", ("--q_max_len", "16", "--p_max_len", "24")
        query = encode(driver, model, eval_dir / "queries.jsonl", folder / f"{name}-q", "--encode_is_qry", *limits)
        passage = encode(driver, model, eval_dir / "corpus.jsonl", folder / f"{name}-p", *limits)
        scores.append(query.vectors @ passage.vectors.T)
    texts = {side: (eval_dir / f"{side}.jsonl").read_text().splitlines() for side in ("queries", "corpus")}
    corpus = [json.loads(line) for line in texts["corpus"]]
    titled = [" ".join([row["title"], row["text"]]) if row.get("title") else row["text"] for row in corpus]
    loaded = SentenceTransformer(str(model), device="cpu")
    query = loaded.encode_query([json.loads(line)["query"] for line in texts["queries"]])
    return [*scores, query @ loaded.encode_document(titled).T]
