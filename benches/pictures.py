"""What the pictures of docs/ have in common."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's, without a screen; the same picture is the same bytes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "fastdense", "axes.spines.top": False, "axes.spines.right": False}
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write ``figure`` as ``path`` and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(path)
