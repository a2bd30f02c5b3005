"""Encoding to shards: shared among processes, gone on with after a kill, never mixed, never half there."""

import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forked
import mortal_run
import numpy as np
import pytest
import torch

from fastdense.data.files import Source, files_source
from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval import encode_files
from fastdense.retrieval.arguments import EncodeArguments
from fastdense.retrieval.encode import TextTokenizer
from fastdense.retrieval.encode_files import encode_to_files
from fastdense.retrieval.launch import Launch
from fastdense.retrieval.loading import _device, describe_encoder
from fastdense.retrieval.representations import (
    Representations,
    read_representations,
    representation_files,
    write_windows,
)
from fastdense.retrieval.texts import Text, survey_texts

N_TEXTS = 50
ROOT = str(Path(__file__).parents[2])


class Encoder:
    """Vectors [n, 4] that tell their text; dies before the ``dies_at``-th call."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        self.encoded: list[str] = []

    def __call__(self, texts: Sequence[Text], on_batch: Callable[[int], object]) -> np.ndarray:
        if self.dies_at is not None:
            self.dies_at -= 1
            if self.dies_at < 0:
                raise KeyboardInterrupt
        self.encoded += [text.text_id for text in texts]
        on_batch(len(texts))
        return np.array([[int(text.text_id), len(text.text), 0.1, -1] for text in texts], dtype=np.float32)


@pytest.fixture
def source(tmp_path, write_jsonl) -> Source:
    rows = [{"docid": str(i), "text": "amber " * (i % 7)} for i in range(N_TEXTS)]
    return files_source([write_jsonl(tmp_path / "corpus.jsonl", rows)])


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(encode_files, "WINDOW", 4)


def encode(
    source: Source, path: Path, encoder: Encoder | None = None, *, size: int | None = 8, model: str = "m"
) -> Encoder:
    encoder = encoder or Encoder()
    data = EncodeArguments(str(path), encode_in_path=["corpus.jsonl"], encode_rows_per_shard=size)
    encode_to_files(encoder, source, data, lambda: {"model": model, "precision": "float32"})
    return encoder


def launch_as(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("name", ["c.npy", "c.safetensors", "c.pkl", "c"])
@pytest.mark.parametrize("world_size", [1, 3, 9])
def test_shards_of_all_processes_are_the_whole(source, tmp_path, monkeypatch, name, world_size):
    whole = read_representations(encode(source, tmp_path / name, size=None) and tmp_path / name)
    encoded = []
    for rank in reversed(range(world_size)):
        launch_as(monkeypatch, rank, world_size)
        encoded += encode(source, tmp_path / "emb" / name).encoded
    shards = [read_representations(file) for file in representation_files(str(tmp_path / "emb/c*"))]
    assert sorted(encoded, key=int) == whole.ids == [text_id for shard in shards for text_id in shard.ids]
    assert [len(shard.ids) for shard in shards] == [8, 8, 8, 8, 8, 8, 2]
    np.testing.assert_array_equal(np.concatenate([shard.vectors for shard in shards]), whole.vectors)


@pytest.mark.parametrize("name", ["c.npy", "c.pkl"])
@pytest.mark.parametrize("dies_at", [0, 1, 2, 3, 4, 12])
def test_a_killed_run_goes_on_where_it_was(source, tmp_path, name, dies_at):
    encode(source, tmp_path / "good" / name)
    with pytest.raises(KeyboardInterrupt):
        encode(source, tmp_path / "emb" / name, Encoder(dies_at))
    whole_shards = dies_at // 2  # two windows each
    assert [path.name for path in sorted((tmp_path / "emb").glob("c-?????-of-00007.???"))] == [
        f"c-0000{number}-of-00007{name[1:]}" for number in range(whole_shards)
    ]
    again = encode(source, tmp_path / "emb" / name)
    assert again.encoded == [str(i) for i in range(8 * whole_shards, N_TEXTS)]
    assert contents(tmp_path / "emb") == contents(tmp_path / "good")
    assert encode(source, tmp_path / "emb" / name).encoded == []


def test_what_a_killed_process_left_unfinished_is_removed(source, tmp_path):
    encode(source, tmp_path / "good" / "c.npy")
    (tmp_path / "emb").mkdir()
    (tmp_path / "emb" / ".fastdense.77.tmp.c-00003-of-00007.npy").write_bytes(b"half")
    others = [".fastdense.77.tmp.other.npy", ".a.tmp.c-00003-of-00007.npy"]
    for name in others:
        (tmp_path / "emb" / name).write_bytes(b"somebody else's")
    encode(source, tmp_path / "emb" / "c.npy")
    for name in others:
        (tmp_path / "emb" / name).unlink()
    assert contents(tmp_path / "emb") == contents(tmp_path / "good")


def test_shards_of_different_encodings_are_never_mixed(source, tmp_path, write_jsonl):
    path = tmp_path / "emb" / "c.npy"
    with pytest.raises(KeyboardInterrupt):
        encode(source, path, Encoder(3))
    with pytest.raises(UserError, match=r"c\.npy are there that were not made with the same model: name another"):
        encode(source, path, model="another")
    with pytest.raises(UserError, match="not made with the same rows_per_shard:"):
        encode(source, path, size=9)
    rows = [{"docid": str(i), "text": "amber " * (i % 7 + (i == 49))} for i in range(N_TEXTS)]
    other = files_source([write_jsonl(tmp_path / "other.jsonl", rows)])
    with pytest.raises(UserError, match="not made with the same texts:"):
        encode(other, path)
    next((tmp_path / "emb").glob(".c.npy.json")).unlink()
    with pytest.raises(UserError, match="not made with the same texts, rows_per_shard, model, precision:"):
        encode(source, path)
    shutil.rmtree(tmp_path / "emb")
    assert len(encode(other, path, model="another").encoded) == N_TEXTS


def test_a_part_of_the_shards_is_not_searched(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        encode(source, tmp_path / "emb" / "c.npy", Encoder(3))
    with pytest.raises(UserError, match=r"c-00001-of-00007\.npy is missing \(6 of 7 shards are\): let the command"):
        representation_files(str(tmp_path / "emb/*"))
    encode(source, tmp_path / "emb" / "c.npy")
    assert len(representation_files(str(tmp_path / "emb/*"))) == 7
    assert len(representation_files(str(tmp_path / "emb/c-00003-of-00007.npy"))) == 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"docid": "3", "text": "again"}, "line 51: the id '3' is that of .*line 4 already"),
        ({"docid": "50", "text": 3}, "line 51: the field text is a number"),
    ],
)
def test_the_last_row_is_checked_before_the_first_is_encoded(tmp_path, write_jsonl, row, sentence):
    rows = [{"docid": str(i), "text": "amber"} for i in range(N_TEXTS)]
    source = files_source([write_jsonl(tmp_path / "corpus.jsonl", [*rows, row])])
    encoder = Encoder()
    with pytest.raises(UserError, match=sentence):
        encode(source, tmp_path / "emb" / "c.npy", encoder)
    assert encoder.encoded == []
    assert not (tmp_path / "emb").exists()


def test_texts_with_equal_hashes_are_no_duplicates(source, monkeypatch):
    monkeypatch.setattr("builtins.hash", lambda _: 7)
    assert survey_texts(source, is_query=False)[0] == N_TEXTS


def test_no_rows(tmp_path, write_jsonl):
    source = files_source([write_jsonl(tmp_path / "corpus.jsonl", [])])
    with pytest.raises(UserError, match=r"corpus\.jsonl: there is no row in it to encode"):
        encode(source, tmp_path / "c.npy")


def test_a_file_in_windows_is_never_in_memory_as_a_whole(tmp_path):
    def windows() -> Iterator[np.ndarray]:
        for number in range(64):
            yield np.full((128, 256), number, dtype=np.float32)

    ids = [str(i) for i in range(64 * 128)]
    tracemalloc.start()
    try:
        assert write_windows(tmp_path / "c.npy", ids, windows()) == 256
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    read = read_representations(tmp_path / "c.npy")
    assert read.vectors.nbytes == 2**23
    assert peak < 2**21
    np.testing.assert_array_equal(read.vectors[:, 3], np.repeat(np.arange(64), 128))


def test_a_failure_in_a_window_leaves_the_file_as_it_was(tmp_path):
    old = Representations(["a"], np.ones((1, 2), np.float32))
    write_windows(tmp_path / "c.npy", old.ids, [old.vectors])
    before = contents(tmp_path)

    def windows() -> Iterator[np.ndarray]:
        yield np.zeros((1, 2), np.float32)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_windows(tmp_path / "c.npy", ["b", "c"], windows())
    assert contents(tmp_path) == before


def test_the_description_names_all_that_changes_vectors(tiny_bert_dir, tiny_bert_no_dropout_dir):
    tokenizer = load_tokenizer(tiny_bert_dir)

    def description(**changes: Any) -> dict[str, str]:
        text = {"max_length": 16, "prefix": "", "separator": " ", **changes.pop("text", {})}
        cut = changes.pop("truncate_dim", None)
        encoder = load_retriever(changes.pop("model", tiny_bert_dir), **changes).passage_encoder
        return describe_encoder(encoder, TextTokenizer(tokenizer, text.pop("max_length"), **text), None, cut)

    def changed(**changes: Any) -> list[str]:
        return [name for name, value in description(**changes).items() if value != description().get(name)]

    assert changed() == changed(model=tiny_bert_no_dropout_dir) == []  # the same weights
    assert changed(pooling="mean") == ["pooling"]
    assert changed(normalize=True) == ["normalize"]
    assert changed(truncate_dim=8) == ["truncate_dim"]
    assert changed(text={"max_length": 17}) == ["p_max_len"]
    assert changed(text={"prefix": "a "}) == ["prefix"]
    assert changed(text={"separator": "sep_token"}) == ["separator"]
    encoder = load_retriever(tiny_bert_dir).passage_encoder
    with torch.no_grad():
        encoder.backbone.encoder.layer[1].output.dense.bias[3] += 1e-6
    assert describe_encoder(encoder, TextTokenizer(tokenizer, 16), None)["model"] != description()["model"]


def test_a_process_takes_the_gpu_of_its_own_number(monkeypatch):
    assert _device(Launch(local_rank=5)) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _device(Launch(local_rank=3)) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="there are 4 GPUs but more processes .* --nproc_per_node 4"):
        _device(Launch(local_rank=4))


@pytest.fixture
def command(tmp_path, tiny_bert_dir, tiny_rows, write_jsonl) -> list[str]:
    corpus = [passage for row in tiny_rows for passage in row["positive_passages"]]
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    return [
        *("--model_name_or_path", str(tiny_bert_dir), "--encode_in_path", str(tmp_path / "corpus.jsonl")),
        *("--encode_rows_per_shard", "20"),
    ]


@pytest.mark.distributed
def test_a_process_killed_while_it_writes(tmp_path, command):
    (tmp_path / "emb").mkdir()

    def run(path: str, death: mortal_run.Death | None = None) -> int:
        arguments = [*command, "--encoded_save_path", tmp_path / path]
        return forked.end(mortal_run.start(arguments, log=tmp_path / "log", death=death, command="encode"))

    assert run("good/c.npy") == 0
    death = mortal_run.Death("os:replace", about="c-00002-of-00005.npy")  # all is written, but not renamed
    assert run("emb/c.npy", death) == -9
    assert len(list((tmp_path / "emb").glob("c-*.npy"))) == 2
    assert len(list((tmp_path / "emb").glob(".*.tmp.*.npy"))) == 1
    assert run("emb/c.npy") == 0
    assert contents(tmp_path / "emb") == contents(tmp_path / "good")


@pytest.mark.distributed
@pytest.mark.slow
def test_under_torchrun(tmp_path, command):
    port = forked.free_port()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    done = subprocess.run(
        [*torchrun, "-m", "fastdense.encode", *command, "--encoded_save_path", str(tmp_path / "emb/c.npy")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "process 0: 3 of 5 shards written (0 were there)" in done.stdout
    assert "process 1: 2 of 5 shards written (0 were there)" in done.stdout
    shards = [read_representations(file) for file in representation_files(str(tmp_path / "emb/*"))]
    assert [len(shard.ids) for shard in shards] == [20, 20, 20, 20, 16]
