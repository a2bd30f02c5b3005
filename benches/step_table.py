"""Write the tables of docs/training.md from the JSON of the training step's bench, one for each file.

python -m benches step_table benches/results/train-step-*.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benches.pages import ROOT, start_marker, with_table

PAGE = ROOT / "docs" / "training.md"
START = start_marker("step_table")
COLUMNS = {
    "examples/s": ("examples_per_second", ".1f"),
    "x sentence-transformers": ("times_base", ".2f"),
    "padding": ("padding", ".1%"),
    "used of a bare product's speed": ("used", ".0%"),
    "peak, MiB": ("peak_mib", ".0f"),
    "gradient error": ("error", ".1e"),
}


def table(report: dict[str, Any]) -> str:
    """Where it was measured, and a line for each batch and provider."""
    about = "{machine}, {threads} threads, torch {torch}; {model}, {n_passages} passages a query, {dtype}".format(
        **report
    )
    rows = [(result["batch"], row) for result in report["results"] for row in result["rows"]]
    columns = {title: at for title, at in COLUMNS.items() if any(row.get(at[0]) is not None for _, row in rows)}
    lines = [about, "", f"| batch | | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for batch, row in rows:
        cells = ["" if row.get(name) is None else format(row[name], form) for name, form in columns.values()]
        lines.append(f"| {batch} | {row['provider']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of python -m benches train_step")
    tables = [table(json.loads(file.read_text())) for file in parser.parse_args().results]
    text = with_table(PAGE.read_text(encoding="utf-8"), "\n\n".join(tables), START, PAGE)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
