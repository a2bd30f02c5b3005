"""The training curve: loss and held-out metrics over the steps of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdense.files import atomic_file
from fastdense.training.flag_checks import MEASURES

_GREY = "#6b7280"
_LOSS = "#c2410c"
_METRICS = ("#1d4ed8", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#4d7c0f")

Points = list[tuple[int, float]]


def draw_training_curve(history: Sequence[dict[str, Any]], picture: Path) -> None:
    """Draw what ``trainer_state.json`` has as its ``log_history`` into the PNG file ``picture``, if a loss is in it.

    Loss and metrics stand above each other rather than on two scales of one plot, whose crossing would mean nothing.
    """
    losses, metrics = _points(history, "loss"), _metrics(history)
    if not losses:
        return
    figure = Figure(figsize=(7, 6 if metrics else 3.2), dpi=110, layout="tight")
    panels = figure.subplots(1 + bool(metrics), 1, sharex=True, squeeze=False)[:, 0]
    _draw(panels[0], "training loss", {"": losses}, (_LOSS,), marker="" if len(losses) > 1 else "o")
    if metrics:
        _draw(panels[1], "on the held-out sets", metrics, _METRICS, marker="o")
    panels[-1].set_xlabel("step", color=_GREY)
    panels[-1].set_xlim(left=0)
    with atomic_file(picture) as path:
        figure.savefig(path)


def _points(history: Sequence[dict[str, Any]], key: str) -> Points:
    return [(entry["step"], entry[key]) for entry in history if key in entry]


def _metrics(history: Sequence[dict[str, Any]]) -> dict[str, Points]:
    """Retrieval metrics, of several sets their mean."""
    points = {measure: _points(history, f"eval_{measure}") for measure in MEASURES}
    return {measure: own for measure, own in points.items() if own}


def _draw(axes: Axes, title: str, curves: dict[str, Points], colors: tuple[str, ...], marker: str) -> None:
    for index, (name, points) in enumerate(curves.items()):
        color = colors[index % len(colors)]
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=color, linewidth=2, marker=marker, markersize=4)
        axes.annotate(f" {values[-1]:.2f} {name}", points[-1], color=color, va="center", annotation_clip=False)
    axes.set_title(title, loc="left", color=_GREY, fontsize=11)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)
    axes.tick_params(colors=_GREY, length=0)
