"""Draw time and memory of the loss against the batch size, from the JSON of its bench, into docs/.

python -m benches plot benches/results/cpu-amd-epyc-zen4-float32.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benches.machine import short_name
from benches.pages import ROOT
from benches.pictures import pyplot, save
from benches.table import BARE

WIDTH = 768  # of the shapes N x N x WIDTH that are drawn


# Strong for our own, quiet for the others; who else may come takes matplotlib's next colour.
STYLES: dict[str, dict[str, Any]] = {
    "fastdense native": {"color": "#0b5fa5", "linewidth": 2.5, "zorder": 3},
    "fastdense through autograd": {"color": "#5aa9e6", "linewidth": 2.5, "zorder": 3},
    "fastdense reference": {"color": "#5aa9e6", "linestyle": ":", "linewidth": 1.8},
    "naive autograd": {"color": "#d1495b"},
    "torch.compile": {"color": "#8d6a9f"},
    "F.linear_cross_entropy": {"color": "#8c564b", "linestyle": "--"},
    "Python chunks of 256": {"color": "#7a9e3c"},
    "sentence-transformers": {"color": "#555555"},
}


def squares(report: dict[str, Any]) -> dict[str, list[tuple[int, float, float | None]]]:
    """For each provider, in the order of N: (N, time over the bare products', peak MiB); nothing where it was wrong."""
    lines: dict[str, list[tuple[int, float, float | None]]] = {}
    for result in sorted(report["results"], key=lambda result: result["shape"]):
        rows, columns, width = result["shape"]
        if rows != columns or width != WIDTH:
            continue
        for row in result["rows"]:
            if row["median_ms"] is not None and not row["provider"].startswith(BARE):
                lines.setdefault(row["provider"], []).append((rows, row["over_products"], row["peak_mib"]))
    return lines


def draw(report: dict[str, Any], path: Path) -> None:
    lines = squares(report)
    figure, (time, memory) = pyplot().subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    time.axhline(1, color="black", linewidth=0.8, linestyle=":")
    for provider, points in lines.items():
        sizes, times, peaks = zip(*points, strict=True)
        style = {"marker": "o", "markersize": 3.5, "linewidth": 1.3} | STYLES.get(provider, {})
        (line,) = time.plot(sizes, times, label=provider, **style)
        if None not in peaks:
            memory.plot(sizes, [max(mib, 0) for mib in peaks], **style | {"color": line.get_color()})
    time.set_yscale("log")
    times = (1, 1.25, 1.5, 2, 3, 4, 5)
    time.set_yticks(times, [f"{value:g} x" for value in times])
    all_sizes = sorted({size for points in lines.values() for size, _, _ in points})
    for axes, title in ((time, "time beside three bare products (dotted)"), (memory, "memory that a call adds, MiB")):
        axes.set_xscale("log")
        axes.set_xticks(all_sizes, [f"{size:,}" for size in all_sizes])
        axes.minorticks_off()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"queries = passages, width {WIDTH}, {report['dtype']}")
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        f"The loss and both gradients: {short_name(report['machine'])}, {report['threads']} threads", fontsize=11
    )
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of python -m benches contrastive_loss")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    for results in arguments.results:
        report = json.loads(results.read_text())
        if not squares(report):
            sys.exit(f"plot: {results} holds no shape N x N x {WIDTH}: run python -m benches contrastive_loss --sweep")
        draw(report, arguments.output_dir / f"loss-{results.stem}.svg")


if __name__ == "__main__":
    main()
