"""The command line: names, configuration files, and answers to mistakes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from fastdense.errors import UserError
from fastdense.training.parser import parse_arguments


@dataclass
class Arguments:
    rate: float = 0.5
    do_train: bool = False
    names: list[str] = field(default_factory=lambda: ["a"])
    text: str | None = None
    kind: Literal["no", "steps"] = "steps"
    passage_len: int = field(default=3, metadata={"aliases": ["--passages_len"]})
    _argument_group_name = "some"

    def __post_init__(self) -> None:
        if self.rate > 10:
            raise ValueError("the rate is\ntoo high")


def parse(*arguments: str) -> Arguments:
    return parse_arguments("some.command", "does something", [Arguments], arguments)[0]


def test_flags_in_both_spellings_and_aliases() -> None:
    assert parse("--rate", "2", "--do_train", "--passage-len=4") == Arguments(2, True, ["a"], passage_len=4)
    assert parse("--passages_len", "5").passage_len == 5


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_flags_win_over_the_configuration_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"config.{ending}"
    path.write_text(json.dumps({"rate": 2, "do_train": True, "names": ["b", "c"], "passage_len": None}))
    assert parse("--config", str(path)) == Arguments(2, True, ["b", "c"])
    assert parse(f"--config={path}", "--rate", "3", "--names", "d").names == ["d"]
    assert parse("--rate", "3", "--config", str(path)).rate == 3


def test_booleans_in_quotes_are_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("do_train: yes\ntext: 'no'\nkind: \"no\"\n")
    assert parse("--config", str(path)) == Arguments(do_train=True, text="no", kind="no")


def test_yaml_numbers_with_an_exponent(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("rate: 1e-5\n")  # a string to YAML 1.1
    assert parse("--config", str(path)).rate == 1e-5


def test_a_lone_json_file_is_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"rate": 2}')
    assert parse(str(path)).rate == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rat", "3"], "unknown flag --rat: did you mean --rate?"),
        (["--rate", "x"], "--rate/--rate: invalid float value: 'x'"),
        (["--zzz"], "unknown flag --zzz: python -m some.command --help lists all flags"),
        (["--encode_is_qry"], "it belongs to python -m fastdense.encode"),
        (["stray"], "unexpected argument 'stray': values belong behind a --flag"),
        (
            ["--rate", "1", "a", "b"],
            "unexpected argument 'a': values belong behind a --flag, and --rate takes one; put a pattern in quotes",
        ),
        (
            ["--rate=1", "a"],
            "unexpected argument 'a': values belong behind a --flag, and --rate takes one; put a pattern in quotes",
        ),
        (["--rate", "11"], "the rate is too high"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(*arguments)
    assert message.replace("--rate/--rate", "--rate") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{", "line 1: this is no JSON"),
        ("c.yaml", "a: [1\nb: 2", "line 2: this is no YAML"),
        ("c.yaml", "rate: 1\nnames: [b\n\n", "line 2: this is no YAML"),
        ("c.yaml", "names: 'b\n", "line 1: this is no YAML"),
        ("c.yaml", "names: 'b\nrate: 1\n", "line 1: this is no YAML"),
        ("c.yaml", "\t", "line 1: this is no YAML"),
        ("c.yaml", "", "c.yaml holds no flags: write one a line, as name: value"),
        ("c.yaml", "# rate: 1\n", "c.yaml holds no flags"),
        ("c.yaml", "rate: 1\ntext: no\n", "line 2: text takes a text, and this means true or false: put it in quotes"),
        ("c.yaml", "names:\n- b\n- yes\n", "line 1: names takes a text, .* put it in quotes"),
        ("c.yaml", "kind: no", "line 1: kind takes a text, .* put it in quotes"),
        ("c.json", '{\n"text": true}', "line 2: text takes a text"),
        ("c.yaml", "- 1", "must hold names and values of flags, not a list"),
        ("c.yaml", "ratte: 1", "unknown key 'ratte': did you mean --rate?"),
    ],
)
def test_a_bad_configuration_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse("--config", str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_help_shows_groups_and_each_flag_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert "some:" in shown
    assert shown.count("--rate") == 1
    assert "--passage-len" not in shown
