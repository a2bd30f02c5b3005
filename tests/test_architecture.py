"""Who may import whom: the ruff rules that say so are complete, and imports are as lazy as promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastdense"

ROOMS = {"loss", "grad_cache", "distributed", "modeling", "data", "retrieval", "training"}
BASE = {"errors", "files", "command", "environment"}
TENSORS_ONLY = {"loss", "grad_cache", "distributed"}
MAY_IMPORT = {
    "loss": set(),
    "grad_cache": set(),
    "distributed": set(),
    "modeling": TENSORS_ONLY,
    "data": TENSORS_ONLY,
    "retrieval": TENSORS_ONLY | {"modeling", "data"},
    "training": ROOMS - {"training"},
    "jax": ROOMS - {"grad_cache", "distributed"},
    "integrations": TENSORS_ONLY,
}


def modules() -> set[str]:
    """Every module and room in the package: ``loss``, ``train`` ..."""
    names = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    return names - {"__init__", "__main__"}


def banned(path: Path, imports: list[str]) -> set[str]:
    """The imports that ``ruff check`` refuses in a file at ``path`` (which need not exist)."""
    source = "".join(f"import {name}\n" for name in imports)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select=TID251", "--output-format=json"]
    result = subprocess.run(
        [*command, f"--stdin-filename={path}", "-"], input=source, capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode in (0, 1), result.stderr
    return {imports[finding["location"]["row"] - 1] for finding in json.loads(result.stdout)}


def file_in(room: str) -> Path:
    return PACKAGE / "distributed.py" if room == "distributed" else PACKAGE / room / "new_file.py"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    pytest.importorskip("ruff")
    siblings = sorted(modules() - BASE - {room})
    expected = {f"fastdense.{name}" for name in siblings if name not in MAY_IMPORT[room]}
    assert banned(file_in(room), [f"fastdense.{name}" for name in siblings]) == expected


@pytest.mark.parametrize("room", [*sorted(ROOMS), "loss/implementations"])
def test_no_room_imports_jax_or_triton(room: str) -> None:
    pytest.importorskip("ruff")
    assert banned(file_in(room), ["jax", "jax.numpy", "triton.language", "torch"]) == {
        "jax",
        "jax.numpy",
        "triton.language",
    }


def test_the_jax_room_shares_only_the_rules_of_the_loss() -> None:
    pytest.importorskip("ruff")
    names = {path.stem for path in (PACKAGE / "loss").glob("[!_]*.py")} | {"implementations"}
    imports = [f"fastdense.loss.{name}" for name in sorted(names)]
    allowed = ["jax", "flax", "torch", "fastdense.loss.rules"]
    assert banned(file_in("jax"), [*imports, *allowed]) == set(imports) - set(allowed)


@pytest.mark.parametrize("room", sorted(TENSORS_ONLY))
def test_tensor_rooms_work_without_transformers(room: str) -> None:
    pytest.importorskip("ruff")
    assert banned(file_in(room), ["transformers", "torch"]) == {"transformers"}


def test_loss_implementations_never_import_one_another() -> None:
    pytest.importorskip("ruff")
    imports = ["fastdense.loss.implementations.reference", "fastdense.loss.problem", "fastdense.data"]
    expected = {"fastdense.loss.implementations.reference", "fastdense.data"}
    assert banned(PACKAGE / "loss" / "implementations" / "new_file.py", imports) == expected


def test_a_command_may_import_every_room() -> None:
    pytest.importorskip("ruff")
    rooms = [f"fastdense.{room}" for room in sorted(ROOMS)]
    assert banned(PACKAGE / "train.py", rooms) == set()
    assert banned(PACKAGE / "files.py", rooms) == set(rooms)


def test_pytorch_commands_load_no_jax() -> None:
    commands = sorted(modules() - ROOMS - BASE - {"jax", "jax_train", "jax_encode", "integrations"})
    assert "train" in commands
    imports = ", ".join(f"fastdense.{name}" for name in commands)
    code = f"import sys, {imports}; print(sys.modules.keys() & {{'jax', 'flax'}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "set()\n"
