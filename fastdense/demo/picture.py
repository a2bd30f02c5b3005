"""The training curve: loss and held-out recall over the steps of a run."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is wanted, no window
from matplotlib import pyplot as plt

_GREY = "#6b7280"
# Above each other rather than on two scales of one plot, whose crossing would mean nothing.
_PANELS = (
    ("loss", "training loss", "#c2410c", ""),
    ("eval_recall@10", "recall@10 on held-out modules", "#1d4ed8", "o"),
)


def draw_training_curve(trainer_state: Path, picture: Path) -> None:
    """Draw what ``trainer_state.json`` logged into the PNG file ``picture``."""
    history = json.loads(trainer_state.read_text(encoding="utf-8"))["log_history"]
    figure, panels = plt.subplots(2, 1, sharex=True, figsize=(7, 6), dpi=150, layout="constrained")
    for axes, (key, title, color, marker) in zip(panels, _PANELS, strict=True):
        logged = [(entry["step"], entry[key]) for entry in history if key in entry]
        steps, values = [step for step, _ in logged], [value for _, value in logged]
        axes.plot(steps, values, color=color, linewidth=2, marker=marker, markersize=5)
        axes.annotate(
            f" {values[-1]:.2f}",
            (steps[-1], values[-1]),
            color=color,
            va="center",
            annotation_clip=False,
            weight="bold",
        )
        axes.set_title(title, loc="left", color=color, fontsize=11)
        axes.set_ylim(0, 1.1 * max(values))
        axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_GREY)
        axes.tick_params(colors=_GREY, length=0)
    panels[-1].set_xlabel("step", color=_GREY)
    panels[-1].set_xlim(left=0)
    figure.savefig(picture)
    plt.close(figure)
