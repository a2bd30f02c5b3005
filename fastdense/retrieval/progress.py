"""The progress bar of encoding and searching."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(
    title: str, total: int, unit: str = "text", *, shown: bool = True
) -> Iterator[Callable[[int], object]]:
    """Show a bar of ``total`` steps; yields the function to call with the number of steps just done."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(desc=title, total=total, unit=unit, dynamic_ncols=True, disable=not shown) as bar:
        yield bar.update
