"""The documentation: its commands parse, its Python compiles, its links lead somewhere, its site builds."""

import argparse
import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastdense.errors import UserError

ROOT = Path(__file__).parents[1]
MADE = ROOT / "docs" / "cli.md"  # when the site is built
DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path != MADE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\s)-m (fastdense\.\w+)(.*)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[str]:
    return (text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages)


def command_lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every ``-m fastdense.<command> flags`` in a shell script: (module, flags)."""
    for line in text.replace("\\\n", " ").splitlines():
        if match := COMMAND.search(line):
            words = shlex.split(match[2], comments=True)
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ";", ">", "&", "do", "done")), None)
            yield match[1], words[:end]


def all_command_lines() -> list[Any]:
    texts = [(path, text) for path in PAGES for text in blocks(path, "bash", "sh", "shell")]
    texts += [(path, path.read_text(encoding="utf-8")) for path in SCRIPTS]
    lines = [(name(path), *line) for path, text in texts for line in command_lines(text)]
    return [pytest.param(module, words, id=f"{page}-{module}-{i}") for i, (page, module, words) in enumerate(lines)]


class _Parsed(Exception):
    """The command line has been parsed."""


@pytest.mark.parametrize(("module", "words"), all_command_lines())
def test_every_command_line_parses(
    module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Names, values and choices of all flags; what a line leaves out with three dots may be required."""
    assert (ROOT / "fastdense" / (module.partition(".")[2] + ".py")).exists() or module == "fastdense.demo"
    if module == "fastdense.demo" or "--help" in words:
        return
    dots = {"...", "…", "$@", "${FLAGS[@]}"} & set(words)
    words = ["7" if word.startswith("$") and word not in dots else word for word in words if word not in dots]
    monkeypatch.chdir(tmp_path)
    for file in [words[i + 1] for i, word in enumerate(words) if word == "--config"]:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("{model_name_or_path: m, output_dir: o, do_train: true, train_dir: t}")
    parse, unknown = argparse.ArgumentParser.parse_known_args, []

    def only_parse(self: argparse.ArgumentParser, *args: Any, **settings: Any) -> Any:
        unknown.extend(parse(self, *args, **settings)[1])
        raise _Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", only_parse)
    with pytest.raises((_Parsed, UserError)) as end:
        importlib.import_module(module).main(words)
    assert unknown == []
    if not end.errisinstance(_Parsed):
        assert dots, str(end.value)
        assert "the following arguments are required" in str(end.value)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles_and_names_what_there_is(page: Path) -> None:
    for text in blocks(page, "python", "py"):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastdense"):
                try:
                    module = importlib.import_module(node.module or "")
                except ModuleNotFoundError as error:  # a drop-in whose library is not here
                    if (error.name or "").startswith("fastdense"):
                        raise
                    continue
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def anchors(page: Path) -> set[str]:
    """Of all headings, as GitHub and mkdocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target == MADE:
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_every_claim_of_ours_is_linked_to_a_test_that_is_there() -> None:
    """A cell of the column "fastdense" is either "no", or names its test."""
    text = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and not line.startswith("| | ")]
    assert len(rows) > 20
    for row in rows:
        links = re.findall(r"\[[^\]]+\]\(\.\./(tests/[\w/]+\.py)\)", row[1])
        assert links or row[1].startswith("no"), row[0]
        for path, test in zip(links, re.findall(r"`(test_\w+)`", row[1]), strict=True):
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), (path, test)


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx checks every link and anchor between pages; the reference of all flags is made from the parsers."""
    pytest.importorskip("sphinx", reason="not installed: pip install 'fastdense[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "doctrees"]
    built = subprocess.run([*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "cli.html").read_text(encoding="utf-8")
    for flag in ("--gc_tokens_per_chunk", "--jax_coordinator_address", "--save_ranking_to", "--relative_margin"):
        assert flag in page
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert [path.stem for path in DOCS if path.stem != "index" and f'href="{path.stem}.html"' not in index] == []
