"""A saved retriever in mteb: its numbers are those of encode, search and evaluate."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdense.encode
import fastdense.evaluate
import fastdense.search
from fastdense.modeling.load import load_retriever
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer

MEASURES = {"mrr@10": "mrr_at_10", "ndcg@10": "ndcg_at_10", "recall@10": "recall_at_10", "recall@100": "recall_at_100"}


@pytest.fixture
def saved(tiny_bert_dir: Path, tmp_path: Path) -> Path:
    """Separate encoders, prompts and lengths of their own: all that mteb must get right."""
    retriever = load_retriever(tiny_bert_dir, untie_encoder=True, pooling="mean", normalize=True)
    with torch.no_grad():
        retriever.query_encoder.backbone.embeddings.word_embeddings.weight.mul_(1.1)
    settings = RetrieverSettings(query_prefix="what ", passage_prefix="the ", q_max_len=16, p_max_len=16)
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved", settings)
    return tmp_path / "saved"


def held_out_task(directory: Path) -> Any:
    """An mteb task of our own over corpus.jsonl, queries.jsonl and qrels.txt: nothing is downloaded."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    def rows(name: str, id_field: str, text_field: str) -> Dataset:
        lines = map(json.loads, (directory / name).read_text().splitlines())
        return Dataset.from_list(
            [{"id": r[id_field], "title": r.get("title", ""), "text": r[text_field]} for r in lines]
        )

    class HeldOut(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="HeldOut",
            description="A held-out set.",
            dataset={"path": "none/none", "revision": "0"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_: Any) -> None:
            judged: dict[str, dict[str, int]] = {}
            for query, _zero, passage, relevance in map(str.split, (directory / "qrels.txt").read_text().splitlines()):
                judged.setdefault(query, {})[passage] = int(relevance)
            split = {
                "corpus": rows("corpus.jsonl", "docid", "text"),
                "queries": rows("queries.jsonl", "query_id", "query").remove_columns("title"),
                "relevant_docs": judged,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return HeldOut()


def by_our_commands(model: Path, directory: Path, folder: Path) -> dict[str, float]:
    common = ("--model_name_or_path", str(model), "--encode_in_path")
    query, passage = str(folder / "q.npy"), str(folder / "p.npy")
    fastdense.encode.main([*common, str(directory / "queries.jsonl"), "--encoded_save_path", query, "--encode_is_qry"])
    fastdense.encode.main([*common, str(directory / "corpus.jsonl"), "--encoded_save_path", passage])
    ranking, values = str(folder / "run.txt"), folder / "values.json"
    fastdense.search.main(
        ["--query_reps", query, "--passage_reps", passage, "--save_ranking_to", ranking, "--save_text"]
    )
    qrels = str(directory / "qrels.txt")
    fastdense.evaluate.main(["--qrels", qrels, "--run", ranking, "--output", str(values), "--measures", *MEASURES])
    return json.loads(values.read_text())


@pytest.mark.slow  # importing mteb takes ten seconds: it makes all of its tasks
@pytest.mark.filterwarnings("default")  # another library's
def test_mteb_measures_a_saved_retriever_as_our_commands_do(saved: Path, eval_dir: Path, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb", reason="not installed: pip install 'fastdense[mteb]'")
    from sentence_transformers import SentenceTransformer

    result = mteb.evaluate(SentenceTransformer(str(saved), device="cpu"), held_out_task(eval_dir), cache=None)
    measured = result.task_results[0].scores["test"][0]
    expected = by_our_commands(saved, eval_dir, tmp_path)
    assert 0 < expected["mrr@10"] < expected["recall@100"]
    assert {name: measured[theirs] for name, theirs in MEASURES.items()} == pytest.approx(
        {name: expected[name] for name in MEASURES}, abs=1e-5
    )
