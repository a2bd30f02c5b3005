"""``python -m fastdense``: what is installed, what serves which device and dtype and why, and what one can run."""

import ast
import re
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import NoReturn

import torch

import fastdense
from fastdense import environment
from fastdense.command import CommandParser, run
from fastdense.errors import UserError

EXTRAS = ("train", "retrieval", "lora", "demo", "tensorboard", "jax", "tpu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print everything; there are no flags but ``--help``."""
    _, others = CommandParser(prog="python -m fastdense", description=__doc__).parse_known_args(arguments)
    if others:
        _reject(others[0])
    for title, lines in (
        ("Installed", _installed()),
        ("Machine", _machine()),
        ("The loss (fastdense.backends())", _loss()),
        ("Extras", _extras()),
        ("Commands (each has --help)", _commands()),
    ):
        print(f"{title}\n" + "".join(f"  {line}\n" for line in lines))


def _reject(word: str) -> NoReturn:
    """A space where the dot of a command belongs, or something else."""
    names = [line.split()[2].removeprefix("fastdense.") for line in _commands()]
    if word in names:
        raise UserError(f"a command stands behind a dot: python -m fastdense.{word}")
    raise UserError(f"unexpected argument {word!r}: python -m fastdense.NAME has the commands {', '.join(names)}")


def _installed() -> Iterator[str]:
    for name, number in environment.versions().items():
        yield f"{name:22}{number}"


def _machine() -> Iterator[str]:
    yield f"processor   {environment.processor()}, {torch.get_num_threads()} threads"
    for name in environment.gpus() or ["none that torch sees"]:
        yield f"GPU         {name}"
    try:
        extension = import_module("fastdense._C")
    except ImportError as error:
        yield f"C++ part    not loaded: {error}"
        return
    features = [name for name, present in extension.cpu_capabilities().items() if present]
    build = extension.build_info()
    cuda = f"CUDA {build['cuda']} for {build['cuda_architectures']}" if build["cuda"] else "no CUDA kernels"
    yield f"C++ part    built by {build['compiler']} beside torch {build['torch']}, {cuda}"
    yield f"            vector instructions here: {', '.join(features) or 'only the usual ones'}"


def _loss() -> Iterator[str]:
    """What serves which device and dtype; an implementation that cannot run says why."""
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        reports = {dtype: fastdense.backends(device, dtype) for dtype in _DTYPES}
        for report in reports.values():
            yield report["auto"]
        for name in reports[torch.float32]:
            answers = {str(dtype).removeprefix("torch."): report[name] for dtype, report in reports.items()}
            if name != "auto" and set(answers.values()) != {"available"}:
                yield f"{name} on {device}: {_grouped(answers)}"
    if environment.version("jax"):
        yield "JAX (fastdense.jax_train, fastdense.jax_encode): Pallas kernels on TPUs, XLA elsewhere"


def _grouped(answers: dict[str, str]) -> str:
    """One answer if all dtypes have the same, else each with its dtypes."""
    by_answer = {answer: [d for d, other in answers.items() if other == answer] for answer in answers.values()}
    if len(by_answer) == 1:
        return next(iter(by_answer))
    return "; ".join(f"{', '.join(dtypes)}: {answer}" for answer, dtypes in by_answer.items())


def _extras() -> Iterator[str]:
    for extra in EXTRAS:
        absent = sorted(set(missing("fastdense", extra)))
        state = f"missing {', '.join(absent)}: pip install 'fastdense[{extra}]'" if absent else "installed"
        yield f"{extra:14}{state}"


def missing(distribution: str, extra: str) -> Iterator[str]:
    """The packages that an extra of an installed distribution asks for and that are not there."""
    for requirement in metadata.requires(distribution) or []:
        wanted, _, marker = requirement.partition(";")
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", wanted.strip())
        if match is None or not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        name, further = match[1], (match[2] or "").split(",")
        if environment.version(name) is None:
            yield name
        else:
            for inner in filter(None, further):
                yield from missing(name, inner)


def _commands() -> Iterator[str]:
    """Every module whose first line says that it is a command, and what it does."""
    package = Path(fastdense.__file__).parent
    for path in sorted([*package.glob("*.py"), *package.glob("*/__main__.py")]):
        if path.name == "__main__.py" and path.parent == package:
            continue
        line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        if match := re.match(r"``(python -m fastdense\.\w+)``: (.+?)\.?$", line):
            yield f"{match[1]:34}{match[2]}"


if __name__ == "__main__":
    run(main)
