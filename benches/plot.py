"""Draw time and memory of the loss against the batch size, from the JSON of its bench, into docs/.

python -m benches plot benches/results/cpu-amd-epyc-zen4-float32.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benches.pages import ROOT

WIDTH = 768  # of the shapes N x N x WIDTH that are drawn


def squares(report: dict[str, Any]) -> dict[str, list[tuple[int, float, float | None]]]:
    """For each provider, in the order of N: (N, median ms, peak MiB); nothing where it was wrong."""
    lines: dict[str, list[tuple[int, float, float | None]]] = {}
    for result in sorted(report["results"], key=lambda result: result["shape"]):
        rows, columns, width = result["shape"]
        if rows != columns or width != WIDTH:
            continue
        for row in result["rows"]:
            if row["median_ms"] is not None:
                lines.setdefault(row["provider"], []).append((rows, row["median_ms"], row["peak_mib"]))
    return lines


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastdense"  # the same picture, the same bytes
    from matplotlib import pyplot

    figure, (time, memory) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for provider, points in squares(report).items():
        style = {"linewidth": 2.5 if provider.startswith("fastdense") else 1.2, "marker": "o", "markersize": 3}
        if provider.startswith("three products"):
            style |= {"linestyle": ":", "color": "gray"}
        sizes = [n for n, _, _ in points]
        time.loglog(sizes, [milliseconds for _, milliseconds, _ in points], label=provider, **style)
        if all(mib is not None for _, _, mib in points):
            memory.loglog(sizes, [max(mib or 0, 1) for _, _, mib in points], label=provider, **style)
        else:
            memory.plot([], [], **style)  # takes its colour, so that both sides agree
    for axes, title in ((time, "ms"), (memory, "MiB that a call adds")):
        axes.set(title=title, xlabel=f"queries = passages, width {WIDTH}, {report['dtype']}")
        axes.grid(which="both", alpha=0.2)
    time.legend(fontsize=7)
    figure.suptitle(f"loss and both gradients: {report['machine']}, {report['threads']} threads")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of python -m benches contrastive_loss")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    for results in arguments.results:
        report = json.loads(results.read_text())
        if not squares(report):
            sys.exit(f"plot: {results} holds no shape N x N x {WIDTH}: run python -m benches contrastive_loss --sweep")
        path = arguments.output_dir / f"loss-{results.stem}.svg"
        draw(report, path)
        print(path)


if __name__ == "__main__":
    main()
