"""What the interpreter itself documents: its compiled modules and the topics of ``help()``."""

import ast
import importlib
import inspect
import re
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path

from fastdense.data.builtin.extraction import DocumentedObject

# Compiled modules that do nothing when imported, under the names people know them by.
_COMPILED_MODULES = {
    "builtins": "builtins", "_bisect": "bisect", "_bz2": "bz2", "_codecs": "codecs", "_collections": "collections",
    "_contextvars": "contextvars", "_csv": "csv", "_datetime": "datetime", "_decimal": "decimal",
    "_functools": "functools", "_hashlib": "hashlib", "_heapq": "heapq", "_imp": "imp", "_io": "io", "_json": "json",
    "_locale": "locale", "_lzma": "lzma", "_operator": "operator", "_pickle": "pickle", "_queue": "queue",
    "_random": "random", "_socket": "socket", "_sqlite3": "sqlite3", "_ssl": "ssl", "_struct": "struct",
    "_thread": "threading", "_tracemalloc": "tracemalloc", "_weakref": "weakref", "array": "array", "atexit": "atexit",
    "binascii": "binascii", "cmath": "cmath", "faulthandler": "faulthandler", "gc": "gc", "itertools": "itertools",
    "marshal": "marshal", "math": "math", "mmap": "mmap", "posix": "os", "pyexpat": "xml.parsers.expat",
    "select": "select", "sys": "sys", "time": "time", "unicodedata": "unicodedata", "zlib": "zlib",
}  # fmt: skip

_TOPIC_PASSAGE_LENGTH = 400  # characters, at least
_UNDERLINE = re.compile(r"\n(\*{3,}|={3,}|-{3,}|~{3,})$", re.MULTILINE)
_BOUND_PARAMETER = re.compile(r"\$(self|module|type)(, /)?(, )?")


def compiled_objects() -> Iterator[DocumentedObject]:
    """Types, methods and functions of the interpreter's compiled modules; modules that it lacks are passed over."""
    for compiled_name, module in _COMPILED_MODULES.items():
        try:
            namespace = vars(importlib.import_module(compiled_name))
        except ImportError:
            continue
        for name, value in sorted(namespace.items()):
            if name.startswith("__") or not _is_own(value, compiled_name, module):
                continue
            yield from _described(value, module, f"{module}.{name}")
            if isinstance(value, type):
                for method_name, method in sorted(vars(value).items()):
                    if inspect.isroutine(method) and not method_name.startswith("__"):
                        yield from _described(method, module, f"{module}.{name}.{method_name}")


def _is_own(value: object, compiled_name: str, module: str) -> bool:
    """Whether ``value`` is a compiled type or function that this module defines rather than an alias of another's."""
    if not isinstance(value, type | types.BuiltinFunctionType):
        return False
    return value.__module__ in (compiled_name, module, None)


def _described(value: object, module: str, qualified_name: str) -> Iterator[DocumentedObject]:
    name = qualified_name.rpartition(".")[2]
    text = value.__doc__
    docstring = inspect.cleandoc(text) if isinstance(text, str) else ""
    first, _, rest = docstring.partition("\n")
    if first.startswith(f"{name}("):  # the older style: the signature is the docstring's first line
        signature, dash, summary = first.partition(" -- ")
        docstring = inspect.cleandoc(f"{summary}\n{rest}" if dash else rest)
    else:
        signature = name + (getattr(value, "__text_signature__", None) or "()")
    if docstring:
        kind = "class" if isinstance(value, type) else "def"
        signature = _BOUND_PARAMETER.sub("", signature)
        yield DocumentedObject(module, qualified_name, f"{kind} {signature}", docstring, "")


def help_topics() -> Iterator[DocumentedObject]:
    """The texts behind ``help("assert")`` and the like, a group of paragraphs each, as module ``help``."""
    path = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    if not path.exists():
        return
    _, _, literal = path.read_text(encoding="utf-8").partition("topics = ")
    topics = ast.literal_eval(literal)
    seen: set[str] = set()
    for topic, text in sorted(topics.items()):
        heading, _, body = _UNDERLINE.sub("", text.strip()).partition("\n")
        paragraphs = [inspect.cleandoc(paragraph) for paragraph in body.split("\n\n")]
        new = [p for p in dict.fromkeys(paragraphs) if p not in seen]  # topics include one another
        seen.update(new)
        for passage in _grouped(new):
            yield DocumentedObject("help", f"help.{topic}", heading, passage, "")


def _grouped(paragraphs: list[str]) -> Iterator[str]:
    group: list[str] = []
    for paragraph in paragraphs:
        group.append(paragraph)
        if sum(map(len, group)) >= _TOPIC_PASSAGE_LENGTH:
            yield "\n\n".join(group)
            group = []
    if group:
        yield "\n\n".join(group)
