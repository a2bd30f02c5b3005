"""The site that `make docs` builds, every link checked: Sphinx reads these pages as Markdown (MyST).

Made here: the navigation, the reference of all flags, and what links that lead out of ``docs/`` become.
"""

import contextlib
import io
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
COMMANDS = "train jax_train encode jax_encode search evaluate mine export builtin_data demo".split()

project = "fastdense"
html_title = "fastdense"
html_theme = "furo"
extensions = ["myst_parser"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a page may begin below the first level

# A page that is not named here is shown under "More".
NAVIGATION = {
    "Start": ["migrating", "comparison", "faq"],
    "Train": ["training", "data", "objectives", "grad-cache", "recipes", "sharing"],
    "Search": ["search", "at-scale", "evaluation", "mining"],
    "The loss": ["loss", "loss-gpu", "jax-loss", "drop-in"],
    "Reference": ["cli"],
}


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: write_cli_reference(Path(app.srcdir)))
    app.connect("source-read", change_source)


def change_source(app: Any, page: str, source: list[str]) -> None:
    """Add the navigation to the first page; a link to a file of the repository becomes its path."""
    source[0] = without_outside_links(source[0], Path(app.srcdir))
    if page == "index":
        source[0] += navigation(Path(app.srcdir))


def navigation(directory: Path) -> str:
    """Only pages that are there, and all of them."""
    pages = sorted(path.stem for path in directory.glob("*.md") if path.stem != "index")
    listed = {name for names in NAVIGATION.values() for name in names}
    sections = {**NAVIGATION, "More": [name for name in pages if name not in listed]}
    parts = []
    for title, names in sections.items():
        if present := [name for name in names if name in pages]:
            parts.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *present, "```"]))
    return "\n\n" + "\n\n".join(parts) + "\n"


def without_outside_links(markdown: str, directory: Path) -> str:
    """``[text](../path)`` to ``text (`path`)``; the path must be there."""

    def path(match: re.Match[str]) -> str:
        target = (directory / match[2].partition("#")[0]).resolve()
        if not target.exists():
            raise ValueError(f"there is no {match[2]}")
        name = target.relative_to(ROOT).as_posix()
        return f"{match[1]} (`{name}`)" if match[1].strip("`") != name else f"`{name}`"

    return re.sub(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s]+)\)", path, markdown)


def write_cli_reference(directory: Path) -> None:
    """Every command with what its ``--help`` says, from the parsers themselves; written only if it changed."""
    parts = ["# All commands and flags\n", "Made from the commands themselves: this is what `--help` prints.\n"]
    for name in COMMANDS:
        parts.append(f"## python -m fastdense.{name}\n\n```text\n{help_of(name)}\n```\n")
    text, page = "\n".join(parts), directory / "cli.md"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _module(command: str) -> Any:
    """A module, or a package that is run by its ``__main__``."""
    module = import_module(f"fastdense.{command}")
    return module if hasattr(module, "main") else import_module(f"fastdense.{command}.__main__")


def help_of(command: str) -> str:
    """What ``python -m fastdense.<command> --help`` prints, 100 columns wide."""
    shown = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        contextlib.redirect_stdout(shown),
        contextlib.suppress(SystemExit),
        mock.patch("sys.argv", [command, "--help"]),
    ):
        _module(command).main()
    return shown.getvalue().rstrip()
