"""The training curve: loss and held-out recall over the steps of a run."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is wanted, no window
from matplotlib import pyplot as plt

_LOSS, _RECALL = "#9a3412", "#1d4ed8"


def draw_training_curve(trainer_state: Path, picture: Path) -> None:
    """Draw what ``trainer_state.json`` logged into the PNG file ``picture``."""
    history = json.loads(trainer_state.read_text(encoding="utf-8"))["log_history"]
    figure, left = plt.subplots(figsize=(8, 4.5), dpi=150, layout="constrained")
    right = left.twinx()
    left.plot(*_series(history, "loss"), color=_LOSS, linewidth=1.5)
    right.plot(*_series(history, "eval_recall@10"), color=_RECALL, linewidth=2, marker="o", markersize=4)
    for axes, label, color in ((left, "training loss", _LOSS), (right, "recall@10 on held-out modules", _RECALL)):
        axes.set_ylabel(label, color=color)
        axes.tick_params(axis="y", colors=color, length=0)
        axes.set_ylim(bottom=0)
        axes.spines[:].set_visible(False)
    left.set_xlabel("step")
    left.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    left.set_title("A small retriever learns to search Python's documentation", loc="left", fontsize=11)
    figure.savefig(picture)
    plt.close(figure)


def _series(history: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    logged = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [step for step, _ in logged], [value for _, value in logged]
