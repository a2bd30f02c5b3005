"""Write the table of ranks in docs/training.md from the JSON of the ranks' bench.

python -m benches ranks_table benches/results/ranks-cpu-intel-xeon-sapphire-rapids.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benches.pages import start_marker, with_table
from benches.step_table import PAGE

START = start_marker("ranks_table")
COLUMNS = {
    "ranks": ("ranks", "d"),
    "loss, CPU ms a rank": ("loss_cpu_ms", ".0f"),
    "beside one rank": ("loss_ratio", ".3f"),
    "exchange, ms": ("exchange_ms", ".0f"),
}


def table(report: dict[str, Any]) -> str:
    """Where it was measured, and a line for each number of ranks."""
    about = "{machine}, one thread a rank, torch {torch}; {shape} (queries, passages, width) in all, {dtype}"
    lines = [about.format(**report), "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in report["results"]:
        lines.append(f"| {' | '.join(format(row[name], form) for name, form in COLUMNS.values())} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of python -m benches ranks")
    report = json.loads(parser.parse_args().results.read_text())
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(report), START, PAGE), encoding="utf-8")


if __name__ == "__main__":
    main()
