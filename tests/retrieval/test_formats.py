"""Files of representations and rankings: what they hold, who can read them, what is refused."""

import pickle
import re

import numpy as np
import pytest
from locked import locked

from fastdense.errors import UserError
from fastdense.retrieval import representations as representations_module
from fastdense.retrieval.evaluation_set import read_evaluation_set
from fastdense.retrieval.pickles import read_array_pickle
from fastdense.retrieval.qrels import read_qrels
from fastdense.retrieval.rankings import Ranked, merge_runs, ranking_files, read_run, write_run
from fastdense.retrieval.representations import (
    Representations,
    read_representations,
    representation_files,
    write_representations,
)

RAN = []


class Malicious:
    """Unpickled by a plain ``pickle.load``, this runs a function of the file's choice."""

    def __reduce__(self):
        return (RAN.append, ("ran",))


class Command:
    def __reduce__(self):
        import os

        return (os.system, ("touch /nonexistent/ran",))


@pytest.fixture
def representations() -> Representations:
    vectors = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    return Representations(["7", "b c", "é", "d", "0"], vectors)


@pytest.mark.parametrize("name", ["r.pkl", "r.pt", "r", "05", "r.npy", "r.safetensors"])
def test_representations_round_trip(tmp_path, representations, name):
    write_representations(tmp_path / name, representations)
    read = read_representations(tmp_path / name)
    assert read.ids == representations.ids
    assert read.vectors.dtype == np.float32
    np.testing.assert_array_equal(read.vectors, representations.vectors)
    assert read.source == str(tmp_path / name)
    assert [path.name for path in representation_files(str(tmp_path / "*"))] == [name]  # no ids, nothing temporary


@pytest.mark.parametrize("name", ["r.pkl", "r.pt", "r"])
def test_the_pickle_is_tevatrons(tmp_path, representations, name):
    write_representations(tmp_path / name, representations)
    with open(tmp_path / name, "rb") as file:
        vectors, ids = pickle.load(file)
    assert type(vectors) is np.ndarray
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, representations.vectors)
    assert ids == representations.ids


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", ">f4"])
def test_pickles_of_other_protocols_and_dtypes(tmp_path, protocol, order, dtype):
    vectors = np.array([[1, 2], [3, 4.5]], dtype=dtype, order=order)
    (tmp_path / "r").write_bytes(pickle.dumps([vectors, np.array(["a", "b"])], protocol=protocol))
    read = read_representations(tmp_path / "r")
    np.testing.assert_array_equal(read.vectors, [[1, 2], [3, 4.5]])
    assert read.ids == ["a", "b"]


def test_numpy_1_pickles(tmp_path, representations):
    data = pickle.dumps((representations.vectors, [1, 2, 3, 4, 5]), protocol=3)
    assert b"numpy._core.multiarray" in data
    (tmp_path / "r.pkl").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    read = read_representations(tmp_path / "r.pkl")
    np.testing.assert_array_equal(read.vectors, representations.vectors)
    assert read.ids == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (np.ones((1, 2), np.float32), [x]), lambda x: {"a": x}])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, wrap):
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(wrap(Malicious())))
    with pytest.raises(UserError, match=r"r\.pkl is no pickle of arrays and strings \(.*\), so it was not loaded"):
        read_representations(tmp_path / "r.pkl")
    assert not RAN
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(wrap(Command())))
    with pytest.raises(UserError, match=r"\(posix\.system\)"):
        read_representations(tmp_path / "c.pkl")


def test_object_arrays_are_refused(tmp_path):
    array = np.array([{"a": 1}], dtype=object)
    (tmp_path / "r.pkl").write_bytes(pickle.dumps((array, ["a"])))
    with pytest.raises(UserError, match="an array of dtype object"):
        read_representations(tmp_path / "r.pkl")
    np.save(tmp_path / "r.npy", array)
    (tmp_path / "r.ids.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"r\.npy is no readable \.npy file"):
        read_representations(tmp_path / "r.npy")


def test_containers_of_a_pickle_survive(tmp_path):
    value = {"a": [1, (2.5, "x", None, True)], "b": np.arange(3), "c": ["s"]}
    (tmp_path / "p").write_bytes(pickle.dumps(value))
    read = read_array_pickle(tmp_path / "p")
    np.testing.assert_array_equal(read.pop("b"), [0, 1, 2])
    del value["b"]
    assert read == value


@pytest.mark.parametrize("ending", ["pkl", "npy", "safetensors"])
@pytest.mark.parametrize("keep", [0, 3, 60])
def test_a_file_cut_short(tmp_path, representations, ending, keep):
    path = tmp_path / f"r.{ending}"
    write_representations(path, representations)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_representations(path)


@pytest.mark.parametrize(("dtype", "value"), [("<f2", np.nan), ("<f4", -np.inf), ("<f8", 1e300)])
def test_broken_vectors_are_counted_over_all_blocks(tmp_path, monkeypatch, dtype, value):
    """1e300 is finite, but not in float32, which is what is computed in."""
    monkeypatch.setattr(representations_module, "CHECKED_BYTES", 4 * 8 * 3)  # three vectors
    vectors = np.ones((10, 8), dtype)
    vectors[[4, 9], 2] = value
    np.save(tmp_path / "r.npy", vectors)
    (tmp_path / "r.ids.txt").write_text("".join(f"d{i}\n" for i in range(10)))
    with pytest.raises(UserError, match=r"r\.npy: the vector of 'd4' holds NaN or infinity \(2 vectors do\)"):
        read_representations(tmp_path / "r.npy")


def write_pickle(path, *content):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ((np.ones((2, 2), np.float32), ["a", "a"]), "the id 'a' occurs more than once"),
        ((np.ones((2, 2), np.float32), ["a"]), "2 vectors but 1 ids"),
        ((np.ones((2, 2), np.int64), ["a", "b"]), r"an array of floats \[texts, dimension\] was expected, not int64"),
        ((np.ones(2, np.float32), ["a", "b"]), r"was expected, not float32 \[2\]"),
        ((np.array([[1, 2], [np.nan, 1]], np.float32), ["a", "b"]), "the vector of 'b' holds NaN or infinity"),
        ((np.array([[np.inf, 2], [-np.inf, np.inf]], np.float32), ["a", "b"]), r"'a' holds .* \(2 vectors do\)"),
        ((np.ones((1, 2), np.float32), [None]), "ids were expected to be a list of strings"),
        ((np.ones((1, 2), np.float32), ["a\tb"]), "tab or a line break"),
        ((np.ones((1, 2), np.float32), [""]), "is empty"),
        ((np.ones((1, 2), np.float32),), r"a pickle of \(float array \[N, d\], list of N ids\) was expected"),
    ],
)
def test_contents_that_are_no_representations(tmp_path, content, sentence):
    write_pickle(tmp_path / "r.pkl", *content)
    with pytest.raises(UserError, match=r"r\.pkl: .*" + sentence):
        read_representations(tmp_path / "r.pkl")


def test_npy_without_ids(tmp_path):
    np.save(tmp_path / "r.npy", np.ones((1, 2), np.float32))
    with pytest.raises(UserError, match=r"needs its ids, one a line, in .*r\.ids\.txt"):
        read_representations(tmp_path / "r.npy")


def test_ids_with_a_byte_order_mark(tmp_path, representations):
    write_representations(tmp_path / "r.npy", representations)
    text = (tmp_path / "r.ids.txt").read_text(encoding="utf-8")
    (tmp_path / "r.ids.txt").write_text(text, encoding="utf-8-sig")
    assert read_representations(tmp_path / "r.npy").ids == representations.ids


def test_ids_that_are_no_text(tmp_path, representations):
    write_representations(tmp_path / "r.npy", representations)
    (tmp_path / "r.ids.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"r\.ids\.txt is no text file in UTF-8; one id a line was expected"):
        read_representations(tmp_path / "r.npy")


@pytest.mark.parametrize(
    "content",
    [b"", b"no array", b"PK\x03\x04rest", b"\x80\x04N.", b"\x93NUMPY\x01\x00\x05\x00{'a'(", b"\x93NUMPY\x09\x00"],
)
def test_a_damaged_npy_is_answered_without_numpys_advice(tmp_path, content):
    (tmp_path / "r.npy").write_bytes(content)
    (tmp_path / "r.ids.txt").write_text("a\n")
    with pytest.raises(UserError) as error:
        read_representations(tmp_path / "r.npy")
    assert str(error.value) == (
        f"{tmp_path}/r.npy is no readable .npy file, or a damaged one: an array of floats [texts, dimension] was "
        "expected; encode the texts again"
    )


def test_an_npz_is_no_npy(tmp_path):
    with (tmp_path / "r.npy").open("wb") as file:
        np.savez(file, np.ones((1, 2), np.float32))
    (tmp_path / "r.ids.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"r\.npy is no readable \.npy file"):
        read_representations(tmp_path / "r.npy")


LOCKED = [
    ("r.npy", read_representations, "r.npy"),
    ("r.ids.txt", read_representations, "r.npy"),
    ("r.safetensors", read_representations, "r.safetensors"),
    ("r.pkl", read_representations, "r.pkl"),
    ("", read_representations, "r.pkl"),
    ("", lambda path: representation_files(str(path)), "r.*"),
    ("", lambda path: representation_files(str(path)), "r.pkl"),
    ("run", read_run, "run"),
    ("", read_run, "run"),
    ("", ranking_files, ""),
    ("qrels.txt", read_qrels, "qrels.txt"),
    ("", read_qrels, "qrels.txt"),
    ("", read_evaluation_set, ""),
    ("qrels.txt", read_evaluation_set, ""),
    ("corpus.jsonl", read_evaluation_set, ""),
]


@pytest.mark.parametrize(("name", "read", "argument"), LOCKED)
@pytest.mark.parametrize("mode", [0, 0o200])
def test_what_may_not_be_read(tmp_path, representations, run, name, read, argument, mode):
    folder = tmp_path / "folder"
    for ending in ("pkl", "npy", "safetensors"):
        write_representations(folder / f"r.{ending}", representations)
    write_run(folder / "run", run, "text")
    (folder / "qrels.txt").write_text("q1 0 a 1\n")
    (folder / "corpus.jsonl").write_text('{"docid": "a", "text": "a"}\n')
    (folder / "queries.jsonl").write_text('{"query_id": "q1", "query": "a"}\n')
    read(folder / argument)
    with locked(folder / name, mode), pytest.raises(UserError, match="cannot be read: permission denied") as error:
        read(folder / argument)
    assert str(error.value).startswith(str(folder / name))


def test_a_directory_that_may_be_entered_but_not_listed(tmp_path, representations):
    """Its files are found by their names alone."""
    write_representations(tmp_path / "folder" / "r.pkl", representations)
    with locked(tmp_path / "folder", 0o100):
        assert representation_files(str(tmp_path / "folder" / "r.pkl")) == [tmp_path / "folder" / "r.pkl"]
        with pytest.raises(UserError, match="folder cannot be read: permission denied"):
            representation_files(str(tmp_path / "folder" / "*.pkl"))


@pytest.mark.parametrize("name", ["r.pkl", "r.npy", "r.safetensors"])
def test_all_that_is_written_has_the_modes_of_other_files(tmp_path, representations, name):
    write_representations(tmp_path / name, representations)
    (tmp_path / "other").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_safetensors_of_something_else(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(2)}, tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="has no tensor 'ids'"):
        read_representations(tmp_path / "r.safetensors")


def test_safetensors_of_other_numbers(tmp_path):
    write_representations(tmp_path / "r.safetensors", Representations(["a"], np.ones((1, 2), np.int64)))
    with pytest.raises(UserError, match=r"r\.safetensors: floats of F64, F32, F16 were expected, not I64"):
        read_representations(tmp_path / "r.safetensors")


def test_a_zip_archive(tmp_path):
    (tmp_path / "r.pt").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(UserError, match=r"torch\.save or zip archive"):
        read_representations(tmp_path / "r.pt")


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"no file of representations matches '.*none\*'"):
        representation_files(str(tmp_path / "none*"))
    with pytest.raises(UserError, match="there is no file of representations at"):
        read_representations(tmp_path / "none")
    with pytest.raises(UserError, match="there is no ranking at"):
        read_run(tmp_path / "none")


def test_files_are_sorted_and_without_folders(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    assert [path.name for path in representation_files(f"{tmp_path}/*")] == ["a", "b"]


def test_a_failed_write_leaves_the_old_file(tmp_path, representations, monkeypatch):
    path = tmp_path / "r.pkl"
    path.write_text("old")

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(pickle, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        write_representations(path, representations)
    assert [file.name for file in tmp_path.iterdir()] == ["r.pkl"]
    assert path.read_text() == "old"


@pytest.fixture
def run():
    return {
        "q1": Ranked(["a", "b"], np.array([2.5, 0.1], np.float32)),
        "q 2": Ranked(["b", "c"], np.array([1 / 3, -1e-7], np.float32)),
    }


def as_lists(run):
    return {query: (found.passage_ids, np.float32(found.scores).tolist()) for query, found in run.items()}


@pytest.mark.parametrize("form", ["text", "trec"])
def test_a_byte_order_mark_is_no_part_of_a_run(tmp_path, run, form):
    run["q2"] = run.pop("q 2")
    write_run(tmp_path / "run", run, form)
    (tmp_path / "run").write_text((tmp_path / "run").read_text(), encoding="utf-8-sig")
    assert as_lists(read_run(tmp_path / "run")) == as_lists(run)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_run_of_nothing(tmp_path, text):
    (tmp_path / "run").write_text(text)
    with pytest.raises(UserError, match=r"run holds no ranking: 'query<TAB>passage<TAB>score' or "):
        read_run(tmp_path / "run")


@pytest.mark.parametrize("form", ["text", "pickle"])
def test_runs_round_trip(tmp_path, run, form):
    write_run(tmp_path / "run", run, form)
    assert as_lists(read_run(tmp_path / "run", ["q1", "q 2"])) == as_lists(run)


def test_trec_round_trip(tmp_path, run):
    run["q2"] = run.pop("q 2")
    write_run(tmp_path / "run", run, "trec")
    assert as_lists(read_run(tmp_path / "run")) == as_lists(run)
    assert (tmp_path / "run").read_text().splitlines()[:2] == ["q1 Q0 a 1 2.5 dense", "q1 Q0 b 2 0.1 dense"]


def test_text_is_tevatrons(tmp_path, run):
    write_run(tmp_path / "run", run, "text")
    assert (tmp_path / "run").read_text().splitlines()[:2] == ["q1\ta\t2.5", "q1\tb\t0.1"]


def test_the_ranking_pickle_is_tevatrons(tmp_path, run):
    write_run(tmp_path / "run", run, "pickle")
    with open(tmp_path / "run", "rb") as file:
        scores, passage_ids = pickle.load(file)
    assert scores.dtype == np.float32
    assert passage_ids.tolist() == [["a", "b"], ["b", "c"]]
    assert scores[0, 0] == 2.5


def test_spaces_cannot_be_written_as_trec(tmp_path, run):
    with pytest.raises(UserError, match="the id 'q 2' holds a space"):
        write_run(tmp_path / "run", run, "trec")
    assert not list(tmp_path.iterdir())


def test_a_pickle_needs_its_queries(tmp_path, run):
    write_run(tmp_path / "run", run, "pickle")
    with pytest.raises(UserError, match="names no queries: write it with --save_text"):
        read_run(tmp_path / "run")
    with pytest.raises(UserError, match="ranks for 2 queries, but --query holds 1"):
        read_run(tmp_path / "run", ["q1"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("q\ta\t1\nq\tb\n", r"run, line 2: .* expected, not 'q\\tb'"),
        ("q\ta\tx\n", "run, line 1: the score 'x' is no finite number"),
        ("q\ta\tnan\n", "run, line 1: the score 'nan' is no finite number"),
        ("q\ta\t1\n\nq\ta\t2\n", "run, line 3: passage 'a' occurs twice for query 'q'"),
        ("q Q0 a 1\n", "run, line 1: "),
    ],
)
def test_malformed_runs(tmp_path, text, sentence):
    (tmp_path / "run").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_run(tmp_path / "run")


def test_a_run_that_is_no_text(tmp_path):
    (tmp_path / "run").write_bytes(b"q\ta\xff\t1\n")
    with pytest.raises(UserError, match="no text file in UTF-8"):
        read_run(tmp_path / "run")


def test_merging_keeps_as_many_as_the_deepest_run(run):
    other = {"q1": Ranked(["c", "d", "e"], np.array([1, 0.1, 0], np.float32))}
    merged = merge_runs([("one", run), ("two", other)])
    assert merged["q1"].passage_ids == ["a", "c", "d"]  # 'd' before 'b': equal scores by id, descending
    assert merged["q 2"].passage_ids == ["b", "c"]
    assert merge_runs([("one", run), ("two", other)], depth=1)["q1"].passage_ids == ["a"]


def test_overlapping_shards(run):
    with pytest.raises(UserError, match="two: passage 'a' was found for query 'q1' in another file already"):
        merge_runs([("one", run), ("two", run)])
