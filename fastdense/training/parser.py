"""The command line of all commands: dataclasses to flags, ``--config`` files, and answers to misspelt names."""

import argparse
import copy
import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from fastdense.errors import UserError
from fastdense.training.former_flags import ELSEWHERE, GONE, RENAMED


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of every flag, and no default where it is None or the text explains it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [option for option in action.option_strings if "-" not in option.lstrip("-")]
        return super()._format_action_invocation(shown)


class Parser(HfArgumentParser):
    """``HfArgumentParser`` without abbreviations and file magic; every mistake is a :class:`UserError`."""

    def __init__(self, dataclass_types: Sequence[type], *, prog: str, description: str) -> None:
        usage = f"python -m {prog} --flag value ..."
        super().__init__(
            dataclass_types,
            prog=prog,
            usage=usage,
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.add_argument(
            "--config", metavar="FILE", help="YAML or JSON file of flags; flags on the command line come before it."
        )

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message.removeprefix("argument "))  # one spelling of a flag
        raise UserError(f"{message.rstrip('.')}; see python -m {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> tuple[Any, ...]:
        """Parse ``arguments`` into one instance per dataclass."""
        words = self._with_config(list(arguments))
        values, unknown = self.parse_known_args(words)
        if unknown:
            self._reject(unknown[0], words[: words.index(unknown[0])])
        given = vars(values)
        return tuple(self._build(kind, given) for kind in self.dataclass_types)

    @staticmethod
    def _build(kind: type, given: dict[str, Any]) -> Any:
        names = kind.__dataclass_fields__  # type: ignore[attr-defined]
        try:
            return kind(**{name: given[name] for name in names if name in given})
        except UserError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:  # the libraries' own checks of their flags
            message = re.sub(r"\b[A-Z]\w+\.([A-Z]+)\b", lambda member: member[1].lower(), str(error))  # of an enum
            raise UserError(" ".join(message.split())) from error

    def _reject(self, argument: str, before: list[str]) -> NoReturn:
        name = argument.split("=")[0]
        flags = [word.split("=")[0] for word in before if word.startswith("--")]
        if not name.startswith("--") and flags and flags[-1] != before[-1]:
            raise UserError(
                f"unexpected argument {argument!r}: values belong behind a --flag, and {flags[-1]} takes one; put a "
                "pattern in quotes, so that the shell does not expand it"
            )
        if not name.startswith("--"):
            raise UserError(f"unexpected argument {argument!r}: values belong behind a --flag")
        raise UserError(f"unknown flag {name}: {self._advice(name)}")

    def _advice(self, name: str) -> str:
        bare = name.lstrip("-").replace("-", "_")
        if bare in ELSEWHERE:
            return f"it belongs to python -m {ELSEWHERE[bare]}"
        known = [option for option in self._option_string_actions if "-" not in option[2:] and option != "--help"]
        if bare in RENAMED and f"--{RENAMED[bare]}" in known:
            return f"here it is called --{RENAMED[bare]}"
        if bare in GONE:
            return GONE[bare]
        close = difflib.get_close_matches(f"--{bare}", known, n=1)
        return f"did you mean {close[0]}?" if close else f"python -m {self.prog} --help lists all flags"

    def _with_config(self, arguments: list[str]) -> list[str]:
        """Put the flags of a configuration file before those of the command line, which then win."""
        path = None
        if len(arguments) == 1 and arguments[0].endswith(".json") and not arguments[0].startswith("-"):
            path, arguments = arguments[0], []  # v1: a lone .json is the configuration
        for index, argument in enumerate(arguments):
            if argument == "--config" and index + 1 < len(arguments):
                path = arguments[index + 1]
            elif argument.startswith("--config="):
                path = argument.removeprefix("--config=")
        return arguments if path is None else [*self._config_flags(path), *arguments]

    def _config_flags(self, path: str) -> list[str]:
        flags: list[str] = []
        content, lines = _read_config(path)
        for name, value in content.items():
            option = f"--{name}"
            action = self._option_string_actions.get(option)
            if name in ("config", "help"):
                raise UserError(f"{path}: {name} belongs on the command line, not into a configuration file")
            if action is None:
                raise UserError(f"{path}: unknown key {name!r}: {self._advice(option)}")
            if (action.type is str or action.choices) and _has_boolean(value):
                line = f", line {lines[name]}" if name in lines else ""
                raise UserError(f"{path}{line}: {name} takes a text, and this means true or false: put it in quotes")
            if isinstance(value, list):
                if action.nargs not in ("+", "*"):
                    raise UserError(f"{path}: {name} takes one value, not a list")
                flags += [option, *map(str, value)]
            elif value is not None:
                flags.append(f"{option}={json.dumps(value) if isinstance(value, dict) else value}")
        return flags


def parse_arguments(
    prog: str, description: str, dataclass_types: Sequence[type], arguments: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Parse a command line into dataclass instances.

    Args:
        prog: module name shown to the user, ``fastdense.train``.
        description: one line for ``--help``.
        dataclass_types: dataclasses whose fields are the flags; ``_argument_group_name`` groups them in ``--help``.
        arguments: the words behind the command; ``sys.argv[1:]`` when None.

    Raises:
        UserError: unknown flag (with the nearest name), bad value, bad configuration file, or a check of a dataclass.
    """
    parser = Parser(dataclass_types, prog=prog, description=description)
    return parser.parse(sys.argv[1:] if arguments is None else arguments)


def _has_boolean(value: Any) -> bool:
    return any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value]))


def _read_config(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What a configuration file says, and the line that each name stands in."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"--config {path} cannot be read: {reason}") from error
    try:
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: this is no JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        line = f", line {_line_of(error, text)}" if isinstance(error, yaml.MarkedYAMLError) else ""
        raise UserError(f"{path}{line}: this is no YAML: {getattr(error, 'problem', error)}") from error
    if content is None:
        raise UserError(f"{path} holds no flags: write one a line, as name: value, or leave --config out")
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold names and values of flags, not a {type(content).__name__}")
    return content, _lines(text)


def _line_of(error: yaml.MarkedYAMLError, text: str) -> int:
    """Where what is wrong stands, or begins if the file ends before it does."""
    problem, beginning = error.problem_mark, error.context_mark
    at_end = problem is None or not text[problem.index :].strip()
    mark = beginning if at_end and beginning is not None else problem
    return max(1, min(mark.line + 1 if mark else 1, len(text.rstrip().splitlines())))


def _lines(text: str) -> dict[str, int]:
    """The line of each name; JSON, which is YAML for the most part, can have what that has not."""
    try:
        node = yaml.compose(text)
    except yaml.YAMLError:
        return {}
    return {key.value: key.start_mark.line + 1 for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {}
