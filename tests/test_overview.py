"""``python -m fastdense``: what is here, what serves what, what is missing."""

import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import fastdense
from fastdense import environment
from fastdense.errors import UserError

overview = import_module("fastdense.__main__")
COMMANDS = "train jax_train encode jax_encode search evaluate mine export builtin_data demo".split()


def test_it_tells_everything_and_loads_next_to_nothing() -> None:
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('fastdense', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*[name for name in ('jax', 'transformers', 'datasets', 'faiss', 'matplotlib') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == ""
    assert f"torch                 {torch.__version__}" in shown
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert fastdense.backends("cpu", dtype)["auto"] in shown
    assert fastdense.backends("cpu")["triton"] in shown
    assert [name for name in COMMANDS if f"python -m fastdense.{name} " not in shown] == []


def test_every_command_is_listed() -> None:
    listed = {line.split()[2].removeprefix("fastdense.") for line in overview._commands()}
    package = Path(fastdense.__file__).parent
    runnable = {path.stem for path in package.glob("*.py") if "\n    run(main)\n" in path.read_text()} - {"__main__"}
    assert listed == runnable | {"demo"}


def test_the_reference_has_every_command() -> None:
    docs = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "conf.py"))
    assert set(docs["COMMANDS"]) == {line.split()[2].removeprefix("fastdense.") for line in overview._commands()}
    assert "--short" in docs["help_of"]("demo")
    assert "--passage_reps" in docs["help_of"]("search")


def test_a_missing_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = environment.version
    monkeypatch.setattr(environment, "version", lambda name: None if name in ("peft", "libtpu") else there(name))
    lines = list(overview._extras())
    assert "lora          missing peft: pip install 'fastdense[lora]'" in lines
    assert "tpu           missing libtpu: pip install 'fastdense[tpu]'" in lines, "asked for by jax[tpu]"
    assert "train         installed" in lines


def test_answers_that_differ_by_dtype_are_told_apart() -> None:
    assert overview._grouped({"float32": "no", "float16": "no"}) == "no"
    assert overview._grouped({"float32": "yes", "float16": "no"}) == "float32: yes; float16: no"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--do_train"], "a command stands behind a dot: python -m fastdense.train$"),
        (
            ["foo"],
            "unexpected argument 'foo': python -m fastdense.NAME has the commands builtin_data, .*, train$",
        ),
    ],
)
def test_a_space_where_the_dot_belongs(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        overview.main(arguments)
