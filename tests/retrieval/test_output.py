"""No command writes over what it reads, nor where no file can be: it says so before any work."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import fastdense.encode
import fastdense.evaluate
import fastdense.export
import fastdense.mine
import fastdense.search
from fastdense.errors import UserError
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.representations import Representations, write_representations

ENCODE = "--model_name_or_path {model} --encode_in_path {files}/rows.jsonl --encoded_save_path "
SEARCH = "--query_reps {files}/q.npy --passage_reps {files}/emb/*.npy --save_ranking_to "
MERGE = "--query_reps {files}/q.npy --save_ranking_to "
EVALUATE = "--qrels {files}/qrels.txt --run {files}/run.txt --output "
MINE = "--query_reps {files}/q.npy --passage_reps {files}/emb/*.npy --corpus {files}/corpus --save_rows_to "
JUDGED = " --queries {files}/queries.jsonl --qrels {files}/qrels.jsonl"
EXPORT = "--passage_reps {files}/emb/* --export_to "
CASES = [
    (fastdense.encode, ENCODE + "{files}/rows.jsonl", "--encoded_save_path is the same file as --encode_in_path: "),
    (fastdense.encode, ENCODE + "{files}/x/../rows.jsonl", "--encoded_save_path is the same file as --encode_in_path"),
    (fastdense.encode, ENCODE + "{files}/link.jsonl", "--encoded_save_path is the same file as --encode_in_path"),
    (fastdense.encode, ENCODE + "{files}/corpus/a.jsonl --encode_in_path {files}/corpus", "same file as --encode_in"),
    (fastdense.encode, ENCODE + "{files}/q.npy --encode_in_path {files}/q.ids.txt", "q.ids.txt, written beside --enc"),
    (fastdense.encode, ENCODE + "{model}/model.safetensors", "--encoded_save_path is the same file as --model_name_or"),
    (fastdense.search, SEARCH + "{files}/q.npy", "--save_ranking_to is the same file as --query_reps"),
    (fastdense.search, SEARCH + "{files}/q.ids.txt", "--save_ranking_to is the same file as --query_reps"),
    (fastdense.search, SEARCH + "{files}/emb/b.npy", "--save_ranking_to is the same file as --passage_reps"),
    (fastdense.search, SEARCH + "{files}/emb/b.ids.txt", "--save_ranking_to is the same file as --passage_reps"),
    (
        fastdense.search,
        MERGE + "{files}/run.txt --merge {files}/run.txt",
        "--save_ranking_to is the same file as --mer",
    ),
    (
        fastdense.search,
        MERGE + "{files}/runs/a --score_dir {files}/runs",
        "--save_ranking_to is the same file as --sco",
    ),
    (fastdense.evaluate, EVALUATE + "{files}/qrels.txt", "--output is the same file as --qrels"),
    (fastdense.evaluate, EVALUATE + "{files}/run.txt", "--output is the same file as --run"),
    (fastdense.mine, MINE + "{files}/rows.jsonl --train_dir {files}/rows.jsonl", "same file as --train_dir"),
    (fastdense.mine, MINE + "{files}/corpus/a.jsonl" + JUDGED, "--save_rows_to is the same file as --corpus"),
    (fastdense.mine, MINE + "{files}/queries.jsonl" + JUDGED, "--save_rows_to is the same file as --queries"),
    (fastdense.mine, MINE + "{files}/qrels.jsonl" + JUDGED, "--save_rows_to is the same file as --qrels"),
    (fastdense.mine, MINE + "{files}/q.jsonl --query_reps {files}/q.jsonl" + JUDGED, "same file as --query_reps"),
    (fastdense.mine, MINE + "{files}/q.jsonl --passage_reps {files}/q.json*" + JUDGED, "same file as --passage_reps"),
    (fastdense.export, EXPORT + "{files}/emb/c.faiss", "--export_to is the same file as --passage_reps"),
    (
        fastdense.export,
        EXPORT + "{files}/d.faiss --passage_reps {files}/d.faiss.npy",
        "d.faiss.ids.txt, written beside",
    ),
]


@pytest.fixture
def files(tmp_path: Path, tiny_bert_dir: Path) -> Path:
    """A file for every flag; what is in them does not matter, they must not be read."""
    for name in (
        *("rows.jsonl", "corpus/a.jsonl", "queries.jsonl", "qrels.jsonl", "qrels.txt", "run.txt", "runs/a", "runs/b"),
        *("q.npy", "q.ids.txt", "q.jsonl", "emb/a.npy", "emb/b.npy", "emb/b.ids.txt", "emb/c.faiss"),
        *("d.faiss.npy", "d.faiss.ids.txt", "model/model.safetensors", "model/config.json"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("kept")
    (tmp_path / "x").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    return tmp_path


def contents(directory: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("command", "line", "sentence"), CASES, ids=[line.split()[-1] for _, line, _ in CASES])
def test_what_is_read_is_not_overwritten(command, line, sentence, files: Path) -> None:
    before = contents(files)
    with pytest.raises(UserError) as error:
        command.main([word.format(files=files, model=files / "model") for word in line.split()])
    assert sentence in str(error.value)
    assert str(error.value).endswith("would be overwritten, and what was read from it lost; name another file to write")
    assert contents(files) == before


def test_an_earlier_result_is_overwritten(tmp_path: Path, tiny_bert_dir: Path) -> None:
    """In the directory of the rows, beside a model, and in the place of what only looks like an input."""
    write_representations(tmp_path / "emb" / "a.npy", Representations(["a"], np.ones((1, 2), np.float32)))
    (tmp_path / "q.pkl").write_bytes(pickle.dumps((np.ones((1, 2), np.float32), ["q"])))
    words = f"--query_reps {tmp_path}/q.pkl --passage_reps {tmp_path}/emb/*.npy --save_text --save_ranking_to".split()
    for _ in range(2):
        fastdense.search.main([*words, str(tmp_path / "emb" / "run.txt")])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"docid": "a", "text": "amber"}\n')
    shutil.copytree(tiny_bert_dir, tmp_path / "model")
    rows = f"--model_name_or_path {tmp_path}/model --encode_in_path {tmp_path}/corpus --encoded_save_path".split()
    for folder in ("corpus", "model", "corpus", "model"):
        fastdense.encode.main([*rows, str(tmp_path / folder / "v.npy")])


@pytest.mark.parametrize("end", ["/", "/.", "/.."])
@pytest.mark.parametrize("command", ["encode", "search", "evaluate"])
def test_the_name_of_a_directory_that_is_not_there(command: str, end: str, files: Path) -> None:
    main, line = {
        "encode": (fastdense.encode.main, ENCODE),
        "search": (fastdense.search.main, SEARCH),
        "evaluate": (fastdense.evaluate.main, EVALUATE),
    }[command]
    words = [word.format(files=files, model=files / "model") for word in line.split()]
    with pytest.raises(UserError, match=f"{words[-1]} .*/new{end} ends as a directory's name does; name a file"):
        main([*words, f"{files}/new{end}"])
    assert not (files / "new").exists()


def test_names_of_collections_are_passed_over(tmp_path: Path) -> None:
    check_writable("--output", tmp_path / "out" / "x", {"--qrels": ["irds:tiny/one", "hub:a/b", "/no/such"]})
    assert os.listdir(tmp_path / "out") == []
