"""Where results go: checked before the work whose results they are."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastdense.errors import UserError
from fastdense.files import check_takes_files

Inputs = Mapping[str, Iterable[str | Path]]  # by flag: the files that a command reads


def check_writable(flag: str, path: str | Path, inputs: Inputs, beside: Sequence[Path] = ()) -> None:
    """Refuse a ``path`` that no file can be written to, or not without losing an input; its folder is made if need be.

    Args:
        flag: the one that names ``path``, for messages.
        inputs: what is read, by flag; names of what is no file here are passed over.
        beside: what else is written, the ids of an .npy file for instance.

    Raises:
        UserError: ``path`` is a directory, its folder takes no files, or a file to write is one that is read.
    """
    if os.path.basename(path) in ("", os.curdir, os.pardir):
        raise UserError(f"{flag} {path} ends as a directory's name does; name a file")
    path = Path(path)
    try:
        check_takes_files(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {path.parent} cannot be made or takes no file ({error.strerror})"
        ) from None
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    _check_no_input(flag, path, inputs)
    for file in beside:
        _check_no_input(f"{file.name}, written beside {flag},", file, inputs)


def _check_no_input(what: str, path: Path, inputs: Inputs) -> None:
    if not path.exists():
        return
    for flag, files in inputs.items():
        if any(os.path.exists(file) and os.path.samefile(path, file) for file in files):
            raise UserError(
                f"{what} is the same file as {flag}: {path} would be overwritten, and what was read from it lost; "
                "name another file to write"
            )
