"""The built-in data set: what it is made of, how it is split, and that it comes out the same every time."""

import filecmp
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from fastdense.builtin_data import main
from fastdense.data.builtin import interpreter, write_builtin_data
from fastdense.data.builtin.extraction import DocumentedObject, documented_objects
from fastdense.data.builtin.retrieval_set import (
    SPLITS,
    Passage,
    Query,
    RetrievalSet,
    build_retrieval_set,
    hard_negatives,
    split_modules,
)
from fastdense.data.builtin.texts import inner_queries, passage_text, query_text
from fastdense.errors import UserError


@pytest.fixture(scope="module")
def library_objects() -> list[DocumentedObject]:
    return [*documented_objects("stdlib"), *interpreter.compiled_objects(), *interpreter.help_topics()]


@pytest.fixture(scope="module")
def library(library_objects: list[DocumentedObject]) -> RetrievalSet:
    return build_retrieval_set(library_objects)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package ``fruitbowl``, which must never be imported."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("__init__", "apples", "pears", "plums", "tests/test_apples"):
        path = folder / "fruitbowl" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_module_source(name.rpartition("/")[2]))
    (folder / "fruitbowl" / "template.py").write_text("def {{ name }}: not Python\n")
    return folder


def _module_source(name: str) -> str:
    functions = "\n".join(
        f'def {verb}_{name}(count):\n    """{verb.title()} this many {name} and tell who did it. Slowly."""\n'
        f"    return {verb!r} * count\n"
        for verb in ("wash", "peel", "slice", "eat")
    )
    return f'"""All that one does with {name} in a kitchen."""\nraise RuntimeError("imported")\n{functions}'


@pytest.fixture
def built(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(package))
    write_builtin_data(tmp_path / "data", ["fruitbowl"])
    return tmp_path / "data"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_standard_library_gives_thousands_of_queries(library: RetrievalSet) -> None:
    assert len(library.queries["train"]) > 4000
    for split in ("dev", "test"):
        assert 300 < len(library.queries[split]) < len(library.queries["train"]) / 4
    modules = {passage.module for passage in library.all_passages()}
    assert {"json.decoder", "argparse", "builtins", "itertools", "help"} <= modules
    assert not modules & {"idlelib", "test.support", "lib2to3.main"}


def test_no_module_is_in_two_splits(library: RetrievalSet) -> None:
    modules = [{passage.module for passage in library.passages[split]} for split in SPLITS]
    assert all(modules)
    assert sum(map(len, modules)) == len(set.union(*modules))


def test_no_text_is_in_two_splits(library: RetrievalSet) -> None:
    for texts in (
        [_passage_texts(library, split) for split in SPLITS],
        [{query.text.casefold() for query in library.queries[split]} for split in SPLITS],
    ):
        assert sum(map(len, texts)) == len(set.union(*texts))


def _passage_texts(library: RetrievalSet, split: str) -> set[str]:
    positives = (passage.text for query in library.queries[split] for passage in query.positives)
    return {passage.text for passage in library.passages[split]} | set(positives)


def test_docids_are_unique_and_fit_into_a_ranking(library: RetrievalSet) -> None:
    docids = [passage.docid for passage in library.all_passages()]
    assert len(docids) == len(set(docids))
    assert not any(re.search(r"\s", docid) for docid in docids)


def test_no_query_holds_the_name_of_what_it_asks_for(library: RetrievalSet) -> None:
    for split in SPLITS:
        for query in library.queries[split]:
            for positive in query.positives:
                name = positive.title.rpartition(".")[2]
                assert not re.search(rf"\b{re.escape(name)}\b", query.text, re.IGNORECASE), (query.text, name)


def test_positives_come_from_the_split_of_their_query(library: RetrievalSet) -> None:
    for split in SPLITS:
        own = {passage.docid for passage in library.passages[split]}
        assert all(passage.docid in own for query in library.queries[split] for passage in query.positives)


def test_hard_negatives_are_the_nearest_in_the_module() -> None:
    passages = [Passage(f"m.{n}", f"m.{n}", str(n), "m") for n in range(8)]
    negatives = hard_negatives(Query("q", "?", (passages[2], passages[3])), passages)
    assert [negative.text for negative in negatives] == ["1", "0", "4", "5"]


def test_training_rows_have_negatives_of_the_positives_module(built: Path) -> None:
    rows = read_rows(built / "train.jsonl")
    assert rows
    for row in rows:
        positives = {passage["docid"] for passage in row["positive_passages"]}
        negatives = {passage["docid"] for passage in row["negative_passages"]}
        assert negatives
        assert not negatives & positives
        module = min(positives, key=len).rpartition(".")[0]
        assert all(docid.startswith(module) for docid in negatives)


def test_summary_and_passage_share_an_object_between_them() -> None:
    docstring = "Return the first match of find(), e.g. 3. Or None.\n\nMore about it:\n    an example"
    item = DocumentedObject("m", "m.C.find", "def find(self)", docstring, "return self.x")
    assert query_text(item) == "Return the first match of, e.g. 3."
    assert passage_text(item) == "def find(self)\nOr None.\nMore about it:\n    an example\nreturn self.x"


def test_training_also_asks_for_sentences_taken_out_of_the_passage() -> None:
    code = "x = 1\n# count all the things\n# that are left\nreturn x"
    item = DocumentedObject("m", "m.find", "def find()", "Find it.\n\nThe search starts at the end. Short.", code)
    assert list(inner_queries(item)) == [
        ("The search starts at the end.", f"def find()\n Short.\n{code}"),
        (
            "count all the things that are left",
            "def find()\nThe search starts at the end. Short.\nx = 1\nreturn x",
        ),
    ]


def test_identical_summaries_are_one_query_with_several_positives() -> None:
    items = [
        DocumentedObject(f"m{n // 2}", f"m{n // 2}.f{n}", f"def f{n}()", "Do what has to be done.", "")
        for n in range(8)
    ]
    result = build_retrieval_set(items)
    asked = [query for split in SPLITS for query in result.queries[split]]
    assert [query.text for query in asked] == ["Do what has to be done."]
    assert set(asked[0].positives) == set(result.passages["train"])


def test_large_modules_are_not_held_out() -> None:
    modules = ["large"] * 500 + [f"small{n // 5}" for n in range(500)]
    split_of = split_modules(modules)
    held_out = [module for module in modules if split_of[module] != "train"]
    assert split_of["large"] == "train"
    assert 150 < len(held_out) < 250
    assert split_modules(modules[::-1]) == split_of


def test_a_package_is_read_without_being_imported(built: Path) -> None:
    assert not any(name.startswith("fruitbowl") for name in sys.modules)
    titles = {row["title"] for row in read_rows(built / "test" / "corpus.jsonl")}
    assert "fruitbowl.pears.peel_pears" in titles
    assert not any("tests" in title for title in titles)


@pytest.mark.slow
def test_the_standard_library_is_read_without_being_imported() -> None:
    script = (
        "import sys; from fastdense.data.builtin.extraction import documented_objects as read; "
        "modules = {item.module for item in read('stdlib')}; "
        "print(len(modules), sorted({'this', 'antigravity', 'turtle', 'tkinter', 'cgi', 'pdb'} & sys.modules.keys()))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\d{3} \[\]\n", output)


@pytest.mark.slow
def test_another_hash_seed_gives_equal_bytes(
    built: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setenv("PYTHONHASHSEED", "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2")
    command = [sys.executable, "-m", "fastdense.builtin_data", "--source", "fruitbowl", "--output_dir"]
    subprocess.run([*command, str(tmp_path / "again")], check=True, capture_output=True)
    files = [
        path.relative_to(built) for path in built.rglob("*") if path.is_file() and path.suffix in (".jsonl", ".txt")
    ]
    assert files
    assert filecmp.cmpfiles(built, tmp_path / "again", map(str, files), shallow=False)[1:] == ([], [])


@pytest.mark.slow
def test_equal_sources_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        command = [sys.executable, "-m", "fastdense.builtin_data", "--source", "email", "--output_dir"]
        subprocess.run([*command, str(tmp_path / seed)], check=True, capture_output=True)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert len(files) == 1 + 2 * 3 + 4
    _, different, missing = filecmp.cmpfiles(tmp_path / "1", tmp_path / "2", map(str, files), shallow=False)
    assert (different, missing) == ([], [])


def test_the_layout_is_what_the_commands_read(built: Path) -> None:
    for split in ("dev", "test"):
        corpus = {row["docid"] for row in read_rows(built / split / "corpus.jsonl")}
        queries = {row["query_id"] for row in read_rows(built / split / "queries.jsonl")}
        judgements = [line.split() for line in (built / split / "qrels.txt").read_text().splitlines()]
        assert {judgement[0] for judgement in judgements} == queries
        assert {judgement[2] for judgement in judgements} <= corpus
        assert all((zero, relevance) == ("0", "1") for _, zero, _, relevance in judgements)
    test_corpus = {row["docid"] for row in read_rows(built / "test" / "corpus.jsonl")}
    assert test_corpus.issuperset(
        passage["docid"] for row in read_rows(built / "train.jsonl") for passage in row["positive_passages"]
    )


def test_the_model_loads_and_reads_identifiers_word_by_word(built: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(built / "model"), AutoModel.from_pretrained(built / "model")
    assert tokenizer.tokenize("peelPears") == tokenizer.tokenize("peel pears")
    encoded = tokenizer(["peel the pears", "eat"], padding=True, return_tensors="pt")
    assert encoded["input_ids"][0, 0] == tokenizer.cls_token_id
    with torch.no_grad():
        assert model(**encoded).last_hidden_state.shape == (*encoded["input_ids"].shape, model.config.hidden_size)


def test_the_random_state_is_left_alone(built: Path, package: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    write_builtin_data(tmp_path / "again", ["fruitbowl"])
    assert torch.equal(torch.get_rng_state(), state)


def test_compiled_modules_and_help_topics_are_documented(library_objects: list[DocumentedObject]) -> None:
    by_name = {item.qualified_name: item for item in library_objects}
    assert by_name["builtins.str.strip"].signature == "def strip(chars=None, /)"
    assert "Return a copy of the string" in by_name["builtins.str.strip"].docstring
    assert by_name["help.assert"].signature == 'The "assert" statement'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no_such_package", "--source no_such_package: no package of that name is installed"),
        ("email.mime", "expected 'stdlib' or the import name of a top-level package"),
        ("", "expected 'stdlib' or the import name of a top-level package"),
        ("sys", "the module is compiled"),
        ("hollow", "no Python source files"),
        ("keyword", "add another --source"),
        ("terse", "add another --source"),
    ],
)
def test_a_useless_source_is_answered_with_a_sentence(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hollow").mkdir()
    for name in "abcd":
        path = tmp_path / "terse" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'"""{name}"""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=re.escape(message)):
        main(["--output_dir", str(tmp_path / "data"), "--source", source])
    assert not (tmp_path / "data").exists()


def test_the_command_ends_with_exit_status_2() -> None:
    result = subprocess.run([sys.executable, "-m", "fastdense.builtin_data"], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the following arguments are required: --output_dir")
    assert "Traceback" not in result.stderr
