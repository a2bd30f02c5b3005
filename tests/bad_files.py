"""Everything that can be wrong with a file or directory a user names, each under a name that says what."""

import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOOD_ROW = {"query": "amber", "positive_passages": [{"docid": "1", "title": "a", "text": "amber"}]}


def make_bad_files(directory: Path, model: Path) -> Path:
    """Fill ``directory``; ``model`` is a good model directory that the bad ones are made from."""
    make_rows(directory)
    make_models(directory, model)
    make_configs(directory)
    make_evaluation_sets(directory)
    make_retrieval_files(directory)
    return directory


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _with(**fields: Any) -> dict[str, Any]:
    return {**GOOD_ROW, **fields}


def make_rows(directory: Path) -> None:
    passage = GOOD_ROW["positive_passages"][0]
    bad_second_row = {
        "no_positives.jsonl": _with(positive_passages=[]),
        "no_query.jsonl": {"positive_passages": [passage]},
        "number_query.jsonl": _with(query=3),
        "text_list.jsonl": _with(positive_passages=[{"text": ["a"]}]),
        "title_number.jsonl": _with(positive_passages=[{"title": 1, "text": "a"}]),
        "string_passages.jsonl": _with(positive_passages=["a"]),
        "no_list.jsonl": _with(negative_passages=passage),
        "mixed.jsonl": {"query": "a", "pos": ["b"]},
        "two_formats.jsonl": _with(pos=["b"]),
        "unknown_fields.jsonl": {"question": "a", "context": "b"},
        "scalar.jsonl": 7,
        "surrogate.jsonl": _with(query="\ud800"),
    }
    for name, row in bad_second_row.items():
        _write(directory / name, _lines(GOOD_ROW, row))
    _write(directory / "malformed.jsonl", _lines(GOOD_ROW, GOOD_ROW) + '{"query": \n')
    _write(directory / "empty.jsonl", "\n\n")
    _write(directory / "binary.jsonl", b"\x7fELF\x02\x01" + bytes(range(256)))
    _write(directory / "utf16.jsonl", _lines(GOOD_ROW).encode("utf-16"))
    _write(
        directory / "truncated.jsonl.gz",
        gzip.compress(_lines(*[_with(query=str(i)) for i in range(99)]).encode())[:-40],
    )
    _write(directory / "plain.jsonl.gz", _lines(GOOD_ROW))
    _write(directory / "broken.parquet", b"PAR1" + bytes(99))
    _write(directory / "token_strings.jsonl", _lines({"query": [1], "positives": [["a"]]}))
    _write(directory / "token_ids.jsonl", _lines(*[{"query": [5], "positives": [[6]], "negatives": [[7]]}] * 8))
    _write(directory / "foreign_tokens.jsonl", _lines({"query": [1], "positives": [[10**6]]}))
    _write(directory / "deep.jsonl", "[" * 99999)
    _write(directory / "good.jsonl", _lines(*[_with(query=f"amber {i}") for i in range(12)]))
    _write(directory / "folder" / "rows.csv", "a,b\n")
    (directory / "empty").mkdir()


def make_models(directory: Path, model: Path) -> None:
    def variant(name: str, change: Callable[[Path], object]) -> None:
        shutil.copytree(model, directory / name)
        change(directory / name)

    def config(**changes: Any) -> Callable[[Path], object]:
        content = json.loads((model / "config.json").read_text())
        return lambda path: _write(path / "config.json", json.dumps({**content, **changes}))

    def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
        def rewrite(path: Path) -> None:
            tensors = load_file(path / "model.safetensors")
            change(tensors)
            save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

        return rewrite

    def remove(*names: str) -> Callable[[Path], object]:
        return lambda path: [(path / name).unlink() for name in names if (path / name).exists()]

    def few_embeddings(path: Path) -> None:
        config(vocab_size=20)(path)
        name = "embeddings.word_embeddings.weight"
        weights(lambda tensors: tensors.update({name: tensors[name][:20].clone()}))(path)

    data = (model / "model.safetensors").read_bytes()
    variant("no_config", remove("config.json"))
    variant("broken_config", lambda path: _write(path / "config.json", '{"model_type": '))
    variant("list_config", lambda path: _write(path / "config.json", "[]"))
    variant("no_model_type", lambda path: _write(path / "config.json", "{}"))
    variant("unknown_type", config(model_type="bart-2"))
    variant(
        "encoder_decoder", lambda path: _write(path / "config.json", '{"model_type": "t5", "is_encoder_decoder": true}')
    )
    variant("images", lambda path: _write(path / "config.json", '{"model_type": "vit"}'))
    variant("own_code", config(model_type="mine", auto_map={"AutoModel": "mine.Model", "AutoConfig": "mine.Config"}))
    variant("no_weights", remove("model.safetensors"))
    variant("truncated_weights", lambda path: _write(path / "model.safetensors", data[:-100]))
    variant("garbage_weights", lambda path: _write(path / "model.safetensors", b"no tensors in here"))
    variant("lacking_weights", weights(lambda tensors: tensors.pop("encoder.layer.1.output.dense.weight")))
    variant("other_shapes", config(hidden_size=64))
    variant("more_layers", config(num_hidden_layers=3))
    variant("no_tokenizer", remove("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"))
    variant("broken_tokenizer", lambda path: _write(path / "tokenizer.json", '{"version": "1.0"'))
    variant("few_embeddings", few_embeddings)
    variant("broken_modules", lambda path: _write(path / "modules.json", '[{"idx": 0'))
    variant("broken_pooler", lambda path: _write(path / "pooler.pt", b"no pickle"))
    variant("broken_own_file", lambda path: _write(path / "fastdense.json", "{"))
    make_decoder(directory / "decoder", model)


def make_decoder(directory: Path, model: Path) -> None:
    """A tiny GPT-2, for which the first token knows nothing of the others."""
    from transformers import AutoTokenizer, GPT2Config, GPT2Model

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(directory)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        directory
    )


def make_configs(directory: Path) -> None:
    configs = {
        "broken.yaml": "learning_rate: 1\n  fp16: [",
        "broken.json": '{"learning_rate": 1,\n}',
        "list.yaml": "- learning_rate\n",
        "text.yaml": "learning_rate\n",
        "binary.yaml": b"\xff\xfe\x00",
        "unknown_key.yaml": "learning_rat: 1\n",
        "former_key.json": '{"evaluation_strategy": "steps"}',
        "dashes.yaml": "--learning_rate: 1\n",
        "wrong_type.yaml": "learning_rate: fast\n",
        "list_value.yaml": "learning_rate: [1, 2]\n",
        "mapping_value.yaml": "learning_rate: {a: 1}\n",
        "boolean_for_number.yaml": "max_steps: true\n",
        "nested.yaml": "config: other.yaml\n",
    }
    for name, content in configs.items():
        _write(directory / name, content)


def make_evaluation_sets(directory: Path) -> None:
    corpus = _lines({"docid": "p1", "text": "amber"}, {"docid": "p2", "text": "cedar"})
    queries = _lines({"query_id": "q1", "query": "amber"})
    good = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels.txt": "q1 0 p1 1\n"}
    changes: dict[str, dict[str, str | None]] = {
        "eval_good": {},
        "eval_no_corpus": {"corpus.jsonl": None},
        "eval_no_queries": {"queries.jsonl": None},
        "eval_no_qrels": {"qrels.txt": None},
        "eval_unknown_query": {"qrels.txt": "q9 0 p1 1\n"},
        "eval_unknown_passage": {"qrels.txt": "q1 0 p9 1\n"},
        "eval_bad_qrels": {"qrels.txt": "q1 0 p1 1\nq1 p1\n"},
        "eval_twice": {"corpus.jsonl": corpus + corpus},
        "eval_no_id": {"corpus.jsonl": '{"text": "a"}\n'},
        "eval_empty_query": {"queries.jsonl": "\n"},
    }
    for name, change in changes.items():
        for file, content in (good | change).items():
            if content is not None:
                _write(directory / name / file, content)


def make_retrieval_files(directory: Path) -> None:
    def vectors(name: str, array: np.ndarray, ids: list[str]) -> None:
        _write(directory / name, pickle.dumps((array, ids)))

    array = np.eye(3, dtype=np.float32)
    vectors("good.pkl", array, ["a", "b", "c"])
    vectors("judged_queries.pkl", array[:1], ["q1"])
    vectors("judged_passages.pkl", array[:2], ["p1", "p2"])
    vectors("other_dimension.pkl", np.eye(4, dtype=np.float32), ["d", "e", "f", "g"])
    vectors("few_ids.pkl", array, ["a"])
    vectors("same_ids.pkl", array, ["a", "a", "b"])
    vectors("nan.pkl", array * np.nan, ["a", "b", "c"])
    _write(directory / "dangerous.pkl", pickle.dumps(print))
    _write(directory / "text.pkl", "no vectors")
    np.save(directory / "no_ids.npy", array)
    _write(directory / "broken.safetensors", b"12")
    _write(directory / "run.txt", "q1\tp1\t3.5\nq1\tp2\t2\n")
    _write(directory / "bad_run.txt", "q1\tp1\t3.5\nq1\tp2\n")
    _write(directory / "bad_score.txt", "q1\tp1\thigh\n")
    _write(directory / "other_run.txt", "q7\tp1\t3.5\n")
    _write(directory / "qrels.txt", "q1 0 p1 1\n")
    _write(directory / "bad_qrels.txt", "q1 0 p1 yes\n")
