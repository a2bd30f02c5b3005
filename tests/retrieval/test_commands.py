"""encode, search, evaluate and their bad inputs, as a user calls them."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch

import fastdense.encode
import fastdense.evaluate
import fastdense.search
from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval.representations import Representations, read_representations, write_representations

ROOT = Path(__file__).parents[2]


def encode(*arguments):
    fastdense.encode.main([str(argument) for argument in arguments])


def search(*arguments):
    fastdense.search.main([str(argument) for argument in arguments])


def evaluate(*arguments):
    fastdense.evaluate.main([str(argument) for argument in arguments])


def unpickle(path):
    with open(path, "rb") as file:
        return pickle.load(file)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_bert_dir):
    """An untied retriever that says all its settings."""
    retriever = load_retriever(tiny_bert_dir, untie_encoder=True, pooling="mean", normalize=True)
    with torch.no_grad():
        retriever.query_encoder.backbone.embeddings.word_embeddings.weight.mul_(1.1)
    settings = RetrieverSettings(
        query_prefix="what ",
        passage_prefix="the ",
        q_max_len=6,
        p_max_len=12,
        passage_field_separator="sep_token",
    )
    directory = tmp_path_factory.mktemp("retriever")
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), directory, settings)
    return directory


@pytest.fixture
def files(tmp_path, tiny_rows, write_jsonl):
    """corpus.jsonl, queries.jsonl and qrels.txt of the tiny data set, in a directory."""
    corpus = [passage for row in tiny_rows for passage in row["positive_passages"] + row["negative_passages"]]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    write_jsonl(tmp_path / "queries.jsonl", tiny_rows)
    judgements = [f"{row['query_id']} 0 {p['docid']} 1\n" for row in tiny_rows for p in row["positive_passages"]]
    (tmp_path / "qrels.txt").write_text("".join(judgements))
    return tmp_path


@pytest.fixture
def vectors(files):
    """queries.pkl and passages.pkl: 5 random queries and 40 random passages, some of them equal."""
    rng = np.random.default_rng(0)
    passages = rng.standard_normal((40, 8)).astype(np.float32)
    passages[20:30] = passages[:10]
    queries = rng.standard_normal((5, 8)).astype(np.float32)
    for name, array, letter in (("queries", queries, "q"), ("passages", passages, "d")):
        (files / f"{name}.pkl").write_bytes(pickle.dumps((array, [f"{letter}{i}" for i in range(len(array))])))
    return files


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("side", ["query", "document"])
def test_cut_vectors_are_those_of_sentence_transformers(
    tiny_rows, write_jsonl, tiny_bert_dir, tmp_path, normalize, side
):
    from sentence_transformers import SentenceTransformer

    settings = RetrieverSettings(query_prefix="what ", q_max_len=12, p_max_len=12)
    retriever = load_retriever(tiny_bert_dir, pooling="mean", normalize=normalize)
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "model", settings)
    texts = [row["query"] for row in tiny_rows]
    rows = write_jsonl(tmp_path / "texts.jsonl", [{"text_id": i, "text": text} for i, text in enumerate(texts)])
    flags = ["--encode_is_qry"] if side == "query" else []
    files = ("--encode_in_path", rows, "--encoded_save_path", tmp_path / "cut.npy")
    encode("--model_name_or_path", tmp_path / "model", *files, "--truncate_dim", 8, *flags)
    cut = read_representations(tmp_path / "cut.npy").vectors
    model = SentenceTransformer(str(tmp_path / "model"), truncate_dim=8, device="cpu")
    expected = getattr(model, f"encode_{side}")(texts, normalize_embeddings=normalize)
    assert cut.shape == (48, 8)
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    assert np.allclose(np.linalg.norm(cut, axis=1), 1) == normalize


def test_encode_search_evaluate(files, model_dir, capsys):
    model = ("--model_name_or_path", model_dir, "--output_dir", "temp", "--per_device_eval_batch_size", 16)
    encode(*model, "--encode_in_path", files / "queries.jsonl", "--encode_is_qry", "--encoded_save_path", files / "q")
    encode(*model, "--encode_in_path", files / "corpus.jsonl", "--encoded_save_path", files / "whole.npy")
    for i in range(3):
        shard = ("--encode_num_shard", 3, "--encode_shard_index", i)
        encode(*model, "--encode_in_path", files / "corpus.jsonl", *shard, "--encoded_save_path", files / f"emb/{i}.pt")
        ranking = ("--save_text", "--save_ranking_to", files / f"separate/{i}")
        search("--query_reps", files / "q", "--passage_reps", files / f"emb/{i}.pt", "--depth", 20, *ranking)
    searched = ("--query_reps", files / "q", "--depth", 20, "--save_text", "--save_ranking_to")
    search(*searched, files / "run.txt", "--passage_reps", files / "emb/*")
    search("--merge", *sorted((files / "separate").iterdir()), "--save_ranking_to", files / "merged.txt")
    text = (files / "run.txt").read_text()
    assert text.count("\n") == 48 * 20
    assert (files / "merged.txt").read_text() == text
    # All in one file, of the shards' vectors: those of other batches may differ in the last bit.
    shards = [read_representations(files / f"emb/{i}.pt") for i in range(3)]
    whole = read_representations(files / "whole.npy")
    for i, shard in enumerate(shards):
        assert shard.ids == whole.ids[i::3]
        np.testing.assert_allclose(shard.vectors, whole.vectors[i::3], atol=1e-6)
    together = Representations([i for s in shards for i in s.ids], np.concatenate([s.vectors for s in shards]))
    write_representations(files / "whole.npy", together)
    search(*searched, files / "unsharded.txt", "--passage_reps", files / "whole.npy")
    assert (files / "unsharded.txt").read_text() == text

    capsys.readouterr()
    evaluate("--qrels", files / "qrels.txt", "--run", files / "run.txt", "--output", files / "values.json")
    values = json.loads((files / "values.json").read_text())
    assert list(values) == ["queries", "RR@10", "nDCG@10", "R@10", "R@100"]
    assert values["RR@10"] == pytest.approx(mean_reciprocal_rank(text, (files / "qrels.txt").read_text()))
    assert f"RR@10    {values['RR@10']:.4f}\n" in capsys.readouterr().out


def mean_reciprocal_rank(run, qrels):
    relevant = {tuple(line.split()[::2]) for line in qrels.splitlines()}
    queries = {line.split()[0] for line in qrels.splitlines()}
    ranks, first = {}, {}
    for line in run.splitlines():
        query, passage, _ = line.split("\t")
        ranks[query] = ranks.get(query, 0) + 1
        if (query, passage) in relevant and ranks[query] <= 10:
            first.setdefault(query, ranks[query])
    return sum(1 / rank for rank in first.values()) / len(queries)


def test_encoding_follows_what_the_model_says(files, model_dir):
    tokenizer, retriever = load_tokenizer(model_dir), load_retriever(model_dir).eval()
    (files / "one.jsonl").write_text('{"docid": "a", "title": "amber willow", "text": "garden glacier river saddle"}\n')
    encode(
        *("--model_name_or_path", model_dir, "--encoded_save_path", files / "p.pkl"),
        *("--encode_in_path", files / "one.jsonl"),
    )
    (files / "one.jsonl").write_text('{"query_id": "a", "query": "garden glacier river saddle maple"}\n')
    encode(
        *("--model_name_or_path", model_dir, "--encoded_save_path", files / "q.pkl", "--encode_is_qry"),
        *("--encode_in_path", files / "one.jsonl"),
    )
    cut = {"truncation": True, "return_tensors": "pt"}
    passage = tokenizer(["the amber willow[SEP]garden glacier river saddle"], max_length=12, **cut)
    query = tokenizer(["what garden glacier river saddle maple"], max_length=6, **cut)
    with torch.no_grad():
        q, p = retriever(query, passage)
    assert len(query["input_ids"][0]) == 6
    np.testing.assert_allclose(unpickle(files / "q.pkl")[0], q, atol=1e-6)
    np.testing.assert_allclose(unpickle(files / "p.pkl")[0], p, atol=1e-6)
    assert unpickle(files / "p.pkl")[1] == ["a"]


def test_flags_win_over_what_the_model_says(files, model_dir):
    (files / "one.jsonl").write_text('{"docid": "a", "title": "amber", "text": "garden glacier river saddle"}\n')
    encode(
        *("--model_name_or_path", model_dir, "--encoded_save_path", files / "p.pkl"),
        *("--encode_in_path", files / "one.jsonl", "--p_max_len", 5, "--passage_prefix", ""),
        *("--passage_field_separator", " ", "--pooling", "cls", "--normalize", "false"),
    )
    encoder = load_retriever(model_dir, pooling="cls", normalize=False).passage_encoder.eval()
    inputs = load_tokenizer(model_dir)(["amber garden glacier"], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(unpickle(files / "p.pkl")[0], encoder(inputs), atol=1e-5)


def test_a_bare_model_takes_tevatrons_lengths(files, tiny_bert_dir, monkeypatch):
    lengths = []
    original = fastdense.encode.encode_texts

    def spy(encoder, tokenize, texts, **settings):
        lengths.append((tokenize.flag, tokenize.max_length))
        return original(encoder, tokenize, texts[:1], **settings).repeat(len(texts), axis=0)

    monkeypatch.setattr(fastdense.encode, "encode_texts", spy)
    model = ("--model_name_or_path", tiny_bert_dir, "--encoded_save_path", files / "x")
    encode(*model, "--encode_in_path", files / "queries.jsonl", "--encode_is_qry")
    encode(*model, "--encode_in_path", files / "corpus.jsonl")
    assert lengths == [("q_max_len", 32), ("p_max_len", 128)]


def test_pre_tokenized_rows_and_several_files(files, tiny_bert_dir, write_jsonl):
    tokenizer = load_tokenizer(tiny_bert_dir)
    ids = tokenizer.encode("amber apple", add_special_tokens=False)
    write_jsonl(files / "a.jsonl", [{"text_id": 1, "text": ids}])
    (files / "b.json.gz").write_bytes(gzip.compress(b'[{"text_id": "2", "text": "amber apple"}]'))
    encode(
        *("--model_name_or_path", tiny_bert_dir, "--encoded_save_path", files / "x.safetensors"),
        *("--encode_in_path", files / "a.jsonl", files / "b.json.gz"),
    )
    search(
        *("--query_reps", files / "x.safetensors", "--passage_reps", files / "x.safetensors"),
        *("--save_ranking_to", files / "run", "--format", "trec"),
    )
    rows = [line.split() for line in (files / "run").read_text().splitlines()]
    assert [" ".join(row[:4]) for row in rows] == ["1 Q0 2 1", "1 Q0 1 2", "2 Q0 2 1", "2 Q0 1 2"]
    assert rows[0][4] == rows[1][4]


def test_the_ranking_pickle_and_the_reducer_of_tevatron(vectors):
    queries, passages = unpickle(vectors / "queries.pkl"), unpickle(vectors / "passages.pkl")
    for i in range(2):
        (vectors / f"emb{i}").write_bytes(pickle.dumps((passages[0][i::2], passages[1][i::2])))
        search(
            *("--query_reps", vectors / "queries.pkl", "--passage_reps", vectors / f"emb{i}", "--depth", 7),
            *("--save_ranking_to", vectors / f"scores/{i}", "--batch_size", -1),
        )
    scores, ids = unpickle(vectors / "scores/0")
    assert scores.shape == ids.shape == (5, 7)
    np.testing.assert_allclose(scores, -np.sort(-(queries[0] @ passages[0][::2].T), axis=1)[:, :7], rtol=1e-6)
    search(
        *("--score_dir", vectors / "scores", "--query", vectors / "queries.pkl"),
        *("--save_ranking_to", vectors / "rank.txt"),
    )
    search(
        *("--query_reps", vectors / "queries.pkl", "--passage_reps", vectors / "passages.pkl", "--depth", 7),
        *("--save_ranking_to", vectors / "whole.txt", "--save_text"),
    )
    assert (vectors / "rank.txt").read_text() == (vectors / "whole.txt").read_text()
    assert (vectors / "rank.txt").read_text().splitlines()[0].split("\t")[0] == "q0"


def test_the_default_depth_is_a_thousand_or_all(vectors):
    search(
        *("--query_reps", vectors / "queries.pkl", "--passage_reps", vectors / "passages.pkl"),
        *("--save_ranking_to", vectors / "r"),
    )
    assert unpickle(vectors / "r")[0].shape == (5, 40)


MODEL = ["--model_name_or_path", "{model}"]
CORPUS = ["--encode_in_path", "{files}/corpus.jsonl"]
SAVE = ["--encoded_save_path", "{files}/out/x.pkl"]
ENCODE_MISTAKES = [
    ([*MODEL, *CORPUS, *SAVE, "--fp16"], "--fp16 needs a GPU: a CPU computes in float32"),
    ([*MODEL, *CORPUS, *SAVE, "--fp16", "--bf16"], "exclude each other"),
    ([*MODEL, *SAVE], "give the texts to encode by one of --encode_in_path FILE... and --dataset_name NAME"),
    ([*MODEL, *CORPUS, *SAVE, "--dataset_name", "a/b"], "by one of --encode_in_path"),
    ([*MODEL, *SAVE, "--encode_in_path", "{files}/none"], "none: there is no such file or directory"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_num_shard", "3", "--encode_shard_index", "3"], "it goes from 0 to 2"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_shard_index", "-1"], "--encode_shard_index -1 is out of range"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_rows_per_shard", "0"], "--encode_rows_per_shard must be at least 1, not 0"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_rows_per_shard", "9", "--encode_num_shard", "3"], "leave --encode_num_shard"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_num_shard", "0"], "--encode_num_shard must be at least 1, not 0"),
    ([*MODEL, *CORPUS, *SAVE, "--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be at least 1"),
    ([*MODEL, *CORPUS, *SAVE, "--truncate_dim", "0"], "--truncate_dim must be at least 1, not 0"),
    ([*MODEL, *CORPUS, *SAVE, "--truncate_dim", "33"], "--truncate_dim is 33, but the vectors have 32 dimensions"),
    ([*MODEL, *CORPUS, *SAVE, "--p_max_len", "2"], "--p_max_len is 2, but the tokenizer adds 2 special tokens"),
    ([*MODEL, *CORPUS, *SAVE, "--p_max_len", "161"], "--p_max_len is 161, but the model has only 160 positions"),
    ([*MODEL, *CORPUS, *SAVE, "--p_max_len", "x"], "invalid int value: 'x'"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_is_qry"], "line 1: a row with a docid is a passage"),
    ([*MODEL, *SAVE, "--encode_in_path", "{files}/queries.jsonl"], "line 1: a row with a query_id is a query"),
    ([*MODEL, *SAVE, "--encode_in_path", "{files}/qrels.txt"], "qrels.txt, line 1: not JSON"),
    ([*MODEL, *CORPUS, *SAVE, "--pooling", "max"], "--pooling"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_is_query"], "unknown flag --encode_is_query: did you mean --encode_is_qry?"),
    ([*MODEL, *CORPUS, *SAVE, "--encode_num", "3"], "unknown flag --encode_num"),
    ([*MODEL, *CORPUS], "--encoded_save_path"),
    ([*MODEL, *CORPUS, "--encoded_save_path", "{files}"], "is a directory; name a file"),
    ([*MODEL, *CORPUS, "--encoded_save_path", "{files}/qrels.txt/x"], "cannot be made"),
    ([*CORPUS, *SAVE, "--model_name_or_path", "{files}/none"], "none"),
    ([*MODEL, *CORPUS, *SAVE, "--tokenizer_name", "{files}"], "tokenizer"),
]
QUERIES = ["--query_reps", "{files}/queries.pkl"]
PASSAGES = ["--passage_reps", "{files}/passages.pkl"]
RANKING = ["--save_ranking_to", "{files}/out/run"]
SEARCH_MISTAKES = [
    ([*QUERIES, *RANKING, "--passage_reps", "{files}/none/*"], "no file of representations matches"),
    ([*PASSAGES, *RANKING, "--query_reps", "{files}/none"], "there is no file of representations at"),
    ([*QUERIES, *PASSAGES, *RANKING, "--depth", "0"], "--depth must be at least 1, not 0"),
    ([*QUERIES, *RANKING, "--passage_reps", "{files}/narrow.pkl"], "queries.pkl have 8 dimensions, the passages of"),
    ([*QUERIES, *RANKING, "--passage_reps", "{files}/[pn]*.pkl"], "'d0' is in another file"),
    ([*QUERIES, *RANKING, "--passage_reps", "{files}/corpus.jsonl"], "corpus.jsonl is no"),
    ([*QUERIES, *RANKING], "searching needs --query_reps and --passage_reps, merging needs --merge FILE..."),
    ([*QUERIES, *PASSAGES, *RANKING, "--merge", "x"], "--passage_reps is for searching"),
    ([*RANKING, "--merge", "x", "--score_dir", "y"], "leave one of them out"),
    ([*RANKING, "--merge", "{files}/none"], "there is no ranking at"),
    ([*RANKING, "--merge", "{files}/empty.txt"], "empty.txt holds no ranking"),
    ([*RANKING, "--score_dir", "{files}/none"], "there is no directory"),
    ([*RANKING, "--merge", "{files}/corpus.jsonl"], "corpus.jsonl, line 1: 'query<TAB>passage<TAB>score'"),
    ([*QUERIES, *PASSAGES, *RANKING, "--save_text", "--format", "trec"], "--save_text contradicts --format trec"),
    ([*QUERIES, *PASSAGES, *RANKING, "--format", "csv"], "--format"),
    ([*QUERIES, *PASSAGES, *RANKING, "--dept", "3"], "unknown flag --dept: did you mean --depth?"),
    ([*QUERIES, *PASSAGES], "--save_ranking_to"),
    ([*QUERIES, *PASSAGES, "--save_ranking_to", "{files}"], "is a directory; name a file"),
]
QRELS = ["--qrels", "{files}/qrels.txt"]
RUN = ["--run", "{files}/run.txt"]
EVALUATE_MISTAKES = [
    ([*QRELS, "--run", "{files}/none"], "there is no ranking at"),
    ([*RUN, "--qrels", "{files}/none"], "there is no file of relevance judgements at"),
    ([*QRELS, *RUN, "--measures", "MRR@ten"], "needs a whole number above 0 behind its @"),
    ([*QRELS, *RUN, "--measures", "ngcd@10"], "unknown measure 'ngcd@10': did you mean nDCG@10?"),
    ([*QRELS, *RUN], "no query of the run has a judgement"),
    ([*QRELS, "--run", "{files}/queries.pkl"], "is a pickle and names no queries"),
    ([*QRELS, *RUN, "--measure", "x"], "unknown flag --measure: did you mean --measures?"),
    ([*QRELS, *RUN, "--output", "{files}"], "is a directory; name a file"),
]


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        *(pytest.param(encode, *case, id=f"encode-{i}") for i, case in enumerate(ENCODE_MISTAKES)),
        *(pytest.param(search, *case, id=f"search-{i}") for i, case in enumerate(SEARCH_MISTAKES)),
        *(pytest.param(evaluate, *case, id=f"evaluate-{i}") for i, case in enumerate(EVALUATE_MISTAKES)),
    ],
)
def test_mistakes_end_in_one_sentence(vectors, tiny_bert_dir, command, arguments, sentence):
    (vectors / "narrow.pkl").write_bytes(pickle.dumps((np.ones((1, 4), np.float32), ["d0"])))
    (vectors / "empty.txt").touch()
    (vectors / "run.txt").write_text("unjudged\td\t1.0\n")
    if command is search and "{files}/[pn]*.pkl" in arguments:
        (vectors / "narrow.pkl").write_bytes(pickle.dumps((np.ones((1, 8), np.float32), ["d0"])))
    with pytest.raises(UserError) as error:
        command(*(argument.format(files=vectors, model=tiny_bert_dir) for argument in arguments))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((vectors / "out").glob("*")) if (vectors / "out").exists() else True


def test_several_processes_do_not_write_one_file(files, tiny_bert_dir, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes cannot write one file: give --encode_rows_per_shard"):
        encode(
            *("--model_name_or_path", tiny_bert_dir, "--encode_in_path", files / "corpus.jsonl"),
            *("--encoded_save_path", files / "x"),
        )


@pytest.mark.slow
def test_data_sets_of_the_hub(seed_hub, tmp_path, tiny_rows):
    """Tevatron's documented commands, against the stand-in of the hub: queries of a split, and a corpus."""
    (tmp_path / "corpus").mkdir()
    with gzip.open(tmp_path / "corpus" / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row["positive_passages"][0]) + "\n" for row in tiny_rows)
    (tmp_path / "corpus" / "wikipedia-nq-corpus.py").write_text("raise SystemExit('must not run')\n")
    seed_hub.add_dataset("Tevatron/wikipedia-nq-corpus", tmp_path / "corpus")
    environment = seed_hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastdense.encode", "--output_dir=temp", "--model_name_or_path=bert-base-uncased"]
    for arguments in (
        ["--dataset_name=Tevatron/wikipedia-nq/dev", "--encoded_save_path=q.pkl", "--q_max_len=32", "--encode_is_qry"],
        ["--dataset_name=Tevatron/wikipedia-nq-corpus", "--encoded_save_path=p.pkl", "--encode_num_shard=20"],
    ):
        done = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert unpickle(tmp_path / "q.pkl")[1] == [str(i) for i in range(128)]
    assert unpickle(tmp_path / "p.pkl")[1] == ["0", "2000", "4000"]


def test_from_the_shell(vectors):
    command = ["-m", "fastdense.search", "--query_reps", "queries.pkl", "--passage_reps", "passages.pkl"]
    command += ["--save_ranking_to", "run.txt", "--save_text"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = [sys.executable, *command, "--depth", "3"]
    done = subprocess.run(asked, cwd=vectors, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the ranking of 5 queries is in run.txt\n")
    assert len((vectors / "run.txt").read_text().splitlines()) == 15
    bad = forked.run([*command, "--depth", "0"], log=vectors / "log")
    assert bad == (2, "error: --depth must be at least 1, not 0\n")
