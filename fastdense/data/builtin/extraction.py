"""The documented objects of a package, read from its source files. Nothing is imported."""

import ast
import importlib.util
import inspect
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastdense.errors import UserError

STANDARD_LIBRARY = "stdlib"

# Tests document themselves, not the library; the others are programs or other people's packages.
_SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3", "site-packages", "test", "tests",
    "turtledemo",
}  # fmt: skip
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class DocumentedObject:
    """A module, class or function with a docstring.

    ``qualified_name`` is dotted and starts with ``module``; ``docstring`` is dedented; ``code`` is the source below
    the docstring, dedented (for a class or module: the signatures of what it defines).
    """

    module: str
    qualified_name: str
    signature: str
    docstring: str
    code: str

    @property
    def name(self) -> str:
        return self.qualified_name.rpartition(".")[2]


def documented_objects(source: str) -> list[DocumentedObject]:
    """All documented objects of ``source`` ("stdlib" or an installed top-level package), in sorted file order.

    Raises:
        UserError: no such package, or one without Python source files.
    """
    found: dict[str, DocumentedObject] = {}
    for module, path in _source_files(source):
        for item in _objects_of_file(module, path):
            found.setdefault(item.qualified_name, item)
    return list(found.values())


def _source_files(source: str) -> list[tuple[str, Path]]:
    """(dotted module name, path) of every source file, sorted by module name."""
    if source == STANDARD_LIBRARY:
        prefix, root = "", Path(sysconfig.get_path("stdlib"))
    else:
        prefix, root = source, _package_root(source)
    paths = [root] if root.is_file() else _walk(root)
    files = [(_module_name(prefix, path.relative_to(root)), path) for path in paths]
    if not files:
        raise UserError(f"--source {source}: the package has no Python source files, give one written in Python")
    return sorted(files)


def _package_root(source: str) -> Path:
    if not source.isidentifier():
        raise UserError(
            f"--source {source}: expected 'stdlib' or the import name of a top-level package, such as numpy"
        )
    try:
        spec = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UserError(
            f"--source {source}: no package of that name is installed for {sys.executable}, "
            "install it or give 'stdlib' or another package's import name"
        )
    if spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    if spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    raise UserError(f"--source {source}: the module is compiled and has no Python source, give one written in Python")


def _walk(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED_FOLDERS and name.isidentifier())
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py") and name[:-3].isidentifier())


def _module_name(prefix: str, relative: Path) -> str:
    parts = [prefix, *relative.parts]
    parts[-1] = parts[-1].removesuffix(".py")
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(part for part in parts if part)
    # The standard library's Python twins of its C modules (_pyio, _pydecimal) are known by the public name.
    public = name.removeprefix("_py")
    return public if public != name and public in sys.stdlib_module_names else name


def _objects_of_file(module: str, path: Path) -> Iterator[DocumentedObject]:
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, OSError):
        return  # templates and files for other Python versions: no documentation to be had
    lines = source.splitlines()
    if docstring := ast.get_docstring(tree):
        yield DocumentedObject(module, module, f"module {module}", docstring, _outline(tree.body))
    for qualified_name, node in _definitions(tree.body, module):
        if docstring := ast.get_docstring(node):
            code = _outline(node.body) if isinstance(node, ast.ClassDef) else _code(node, lines)
            yield DocumentedObject(module, qualified_name, _signature(node), docstring, code)


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Functions and classes with their qualified names, methods included, functions inside functions not."""
    for node in body:
        if isinstance(node, _Definition):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{prefix}.{node.name}")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _definitions(
                [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)], prefix
            )


def _signature(node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in node.bases)
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}"


def _outline(body: list[ast.stmt]) -> str:
    return "\n".join(_signature(node) for node in body if isinstance(node, _Definition))


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    docstring_end = node.body[0].end_lineno
    return inspect.cleandoc("\n".join(["", *lines[docstring_end : node.end_lineno]]))
