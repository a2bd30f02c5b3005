"""Write the table and the picture of docs/training.md from the JSON of the training step's bench.

python -m benches step_table benches/results/train-step-*.json
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benches.machine import short_name
from benches.pages import ROOT, start_marker, with_table
from benches.pictures import pyplot, save

PAGE = ROOT / "docs" / "training.md"
PICTURE = ROOT / "docs" / "step-speed.svg"
START = start_marker("step_table")
OURS, BASE, TUNED = "fastdense cached", "sentence-transformers", "sentence-transformers, best token budget"
# What fastdense is compared with, beside BASE: how it is drawn.
PEERS = {
    TUNED: {"color": "#d1495b", "marker": "d"},
    "v1-style": {"color": "#5b3a70", "marker": "o"},
    "plain autograd": {"color": "#4d6b1e", "marker": "s"},
}

Row = dict[str, Any]


class Comparison:
    """What one run of the bench measured at one batch: a line of the table, a bar of the picture."""

    def __init__(self, report: Row, result: Row) -> None:
        self.report = report
        self.batch = result["batch"]
        self.rows: dict[str, Row] = {row["provider"]: row for row in result["rows"]}
        tuned = [row for name, row in self.rows.items() if name.startswith(BASE + " ")]
        if tuned:
            self.rows[TUNED] = max(tuned, key=lambda row: float(row["examples_per_second"]))

    @property
    def machine(self) -> str:
        return short_name(self.report["machine"])

    @property
    def work(self) -> str:
        model, _, rest = self.report["model"].partition(",")
        return f"{model}{' (random weights)' if rest else ''}, {self.report['dtype']}"

    @property
    def texts(self) -> str:
        return f"{self.batch} x {self.report['n_passages']}"

    def speed(self, provider: str) -> float | None:
        return self.rows.get(provider, {}).get("examples_per_second")

    def ratio(self, peer: str) -> float | None:
        """How many times as fast fastdense is."""
        ours, other = self.speed(OURS), self.speed(peer)
        return ours / other if ours and other else None


def _form(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _ratio(peer: str, one: Comparison) -> str:
    return _form(one.ratio(peer), ".2f")


COLUMNS: dict[str, Callable[[Comparison], str]] = {
    "processor": lambda one: one.machine,
    "model": lambda one: one.work,
    "queries x passages": lambda one: one.texts,
    "fastdense, examples/s": lambda one: _form(one.speed(OURS), ".1f"),
    **{f"x {peer}": partial(_ratio, peer) for peer in (BASE, *PEERS)},
    "padding, theirs": lambda one: ", ".join(_form(one.rows[name]["padding"], ".0%") for name in (OURS, BASE)),
    "used": lambda one: _form(one.rows[OURS].get("used"), ".0%"),
    "peak, theirs, MiB": lambda one: ", ".join(
        filter(None, (_form(one.rows[name].get("peak_mib"), ".0f") for name in (OURS, BASE)))
    ),
    "gradient error": lambda one: _form(one.rows[OURS]["error"], ".0e"),
}


def comparisons(reports: list[Row]) -> list[Comparison]:
    """Those with the largest lead first."""
    found = [Comparison(report, result) for report in reports for result in report["results"]]
    return sorted(found, key=lambda one: one.ratio(BASE) or 0, reverse=True)


def table(reports: list[Row]) -> str:
    """A line for each run and batch, without the columns that none of them measured."""
    cells = [[of(one) for of in COLUMNS.values()] for one in comparisons(reports)]
    used = [any(column) for column in zip(*cells, strict=True)]
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *cells]
    return "\n".join(f"| {' | '.join(cell for cell, use in zip(line, used, strict=True) if use)} |" for line in lines)


def draw(reports: list[Row], path: Path) -> None:
    """Examples a second as multiples of sentence-transformers' cached loss."""
    found = [one for one in comparisons(reports)[::-1] if one.ratio(BASE)]  # a picture counts from below
    figure, axes = pyplot().subplots(figsize=(9, 1.2 + 0.36 * len(found)), layout="constrained")
    bars = axes.barh(
        range(len(found)), [one.ratio(BASE) for one in found], color="#9cc9ee", height=0.6, label="fastdense"
    )
    axes.bar_label(bars, fmt="%.1f x", padding=4, fontsize=9)
    for peer, style in PEERS.items():
        points = [(one.speed(peer) / one.speed(BASE), y) for y, one in enumerate(found) if one.speed(peer)]  # type: ignore[operator]
        if points:
            axes.scatter(*zip(*points, strict=True), label=peer, zorder=3, s=22, **style)
    axes.set_yticks(range(len(found)), [f"{one.work}, {one.texts}\n{one.machine}" for one in found])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(f"examples a second, as multiples of {BASE}' cached loss; equal gradients")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of python -m benches train_step")
    reports = [json.loads(file.read_text()) for file in parser.parse_args().results]
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(reports), START, PAGE), encoding="utf-8")
    draw(reports, PICTURE)


if __name__ == "__main__":
    main()
