"""Where results go: checked before the work whose results they are."""

from pathlib import Path

from fastdense.errors import UserError
from fastdense.files import check_takes_files


def check_writable(path: str | Path) -> None:
    """Raise UserError if no file can be written to ``path``, whose folder is made if need be."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; name a file")
    try:
        check_takes_files(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {path.parent} cannot be made or takes no file ({error.strerror})"
        ) from None
