"""Every mistake a user can make ends with one sentence and exit status 2, before any training.

The mistakes are in :mod:`bad_commands`, the files they name are made by :mod:`bad_files`.
"""

import importlib
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from bad_commands import ALONE, CHECKPOINTS, CONFIGS, FLAGS, GOOD, MODELS, OTHER_MODELS, OUTPUTS, ROWS
from bad_files import make_bad_files

from fastdense.command import run


@dataclass(frozen=True)
class Bench:
    """Runs command lines that must fail."""

    places: dict[str, Path]
    capsys: pytest.CaptureFixture[str]

    def words(self, command: str) -> list[str]:
        for name, path in self.places.items():
            command = command.replace(f"{{{name}}}", str(path))
        return shlex.split(command)

    def check(self, command: str, pieces: Sequence[str], *, alone: bool = False) -> None:
        name, *flags = self.words(command)
        sentence = self.answer(name, flags if alone else [*self.words(GOOD[name]), *flags])
        for piece in pieces:
            assert piece in sentence

    def answer(self, name: str, flags: list[str]) -> str:
        """The sentence that the command ends with."""
        main = importlib.import_module(f"fastdense.{name}").main
        with pytest.raises(SystemExit) as end:
            run(lambda: main(flags))
        errors = self.capsys.readouterr().err
        assert end.value.code == 2
        assert "Traceback" not in errors
        assert errors.count("error: ") == 1
        sentence = errors.splitlines()[-1]
        assert sentence.startswith("error: ")
        return sentence


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_bert_dir: Path) -> dict[str, Path]:
    bad = make_bad_files(tmp_path_factory.mktemp("bad"), tiny_bert_dir)
    return {"bad": bad, "model": tiny_bert_dir, "rows": bad / "good.jsonl"}


@pytest.fixture
def bench(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """Without a first step: whatever is found later than that is found too late."""
    from fastdense.training.trainer import RetrieverTrainer

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError("the mistake has not been found before the first step")

    monkeypatch.setattr(RetrieverTrainer, "training_step", too_late)
    return Bench({**places, "out": tmp_path}, capsys)


def test_the_good_commands_have_no_mistake(places, tmp_path):
    bench = Bench({**places, "out": tmp_path}, capsys=None)
    for name in ("train", "encode", "search", "evaluate", "mine", "export"):
        importlib.import_module(f"fastdense.{name}").main(bench.words(GOOD[name]))


@pytest.mark.parametrize("case", [*FLAGS, *ROWS, *OTHER_MODELS, *OUTPUTS], ids=lambda case: case[0])
def test_command(case: tuple[str, ...], bench: Bench) -> None:
    bench.check(case[0], case[1:])


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case[0])
def test_command_that_lacks_something(case: tuple[str, ...], bench: Bench) -> None:
    bench.check(case[0], case[1:], alone=True)


@pytest.mark.parametrize("command", ["train", "encode"])
@pytest.mark.parametrize("case", MODELS, ids=lambda case: case[0])
def test_model_directory(case: tuple[str, ...], command: str, bench: Bench) -> None:
    bench.check(f"{command} --model_name_or_path {{bad}}/{case[0]}", case[1:])


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: case[0])
def test_configuration_file(case: tuple[str, ...], bench: Bench) -> None:
    bench.check(f"train --config {{bad}}/{case[0]}", case[1:])


@pytest.fixture(scope="module")
def good_checkpoint(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("good-run")
    bench = Bench({**places, "out": out}, capsys=None)
    importlib.import_module("fastdense.train").main([*bench.words(GOOD["train"]), "--save_steps", "1"])
    return out / "model" / "checkpoint-1"


@pytest.mark.parametrize(("file", "damage", "flags", "pieces"), CHECKPOINTS)
def test_checkpoint(file, damage, flags, pieces, good_checkpoint: Path, bench: Bench, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(good_checkpoint, tmp_path / "model" / "checkpoint-1")
    damage(checkpoint / file)
    bench.check(f"train --resume_from_checkpoint true {flags}", pieces)


@pytest.mark.parametrize(
    ("request_", "pieces"),
    [
        ("true", ["no checkpoint-*", "use auto"]),
        ("{bad}/nowhere", ["nowhere is no directory", "checkpoint-*"]),
        ("{model}", ["no whole checkpoint", "trainer_state.json is missing"]),
    ],
)
def test_resume_from_nowhere(request_: str, pieces: list[str], bench: Bench) -> None:
    bench.check(f"train --resume_from_checkpoint {request_}", pieces)


@pytest.mark.parametrize(
    "case",
    [FLAGS[0], ("train --model_name_or_path {bad}/truncated_weights", "cut short")],
    ids=lambda case: case[0],
)
def test_process(case: tuple[str, ...], places: dict[str, Path], tmp_path: Path) -> None:
    bench = Bench({**places, "out": tmp_path}, capsys=None)
    name, *flags = bench.words(case[0])
    status, printed = forked.run(["-m", f"fastdense.{name}", *bench.words(GOOD[name]), *flags], log=tmp_path / "log")
    assert status == 2
    assert "Traceback" not in printed
    sentence = printed.splitlines()[-1]
    assert sentence.startswith("error: ")
    for piece in case[1:]:
        assert piece in sentence
