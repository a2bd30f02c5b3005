"""Where results go: checked before the work whose results they are."""

import os
from pathlib import Path

from fastdense.errors import UserError


def check_writable(path: str | Path) -> None:
    """Raise UserError if no file can be written to ``path``, whose folder is made if need be."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {path.parent} cannot be made ({error.strerror})") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        reason = "is a directory" if path.is_dir() else f"cannot be written: {path.parent} is read-only"
        raise UserError(f"{path} {reason}; name a file")
