"""Write the tables of README.md and docs/loss.md from the JSON that the loss's bench has left in benches/results.

python -m benches table            rewrites what lies between the markers
python -m benches table --check    changes nothing; exit status 1 where a page and the JSON differ
"""

import argparse
import json
import sys
from typing import Any

from benches.pages import ROOT, start_marker, with_table

NAME = "cpu-amd-epyc-zen4"  # whose results the pages show
SHAPE = (4096, 8192, 768)
DTYPES = ("float32", "bfloat16")
START, SHAPES_START = start_marker("table"), start_marker("table", "every shape")
BARE = "three products, "
LABELS = {
    "fastdense native": "**fastdense**",
    "F.linear_cross_entropy": "`F.linear_cross_entropy`",
    "torch.compile": "`torch.compile` of naive autograd",
    "sentence-transformers": "sentence-transformers' cached loss",
    "Python chunks of 256": "Python chunks of 256 rows",
}
COLUMNS = {  # what a page calls it: its name in the JSON, its form
    "x bare": ("over_products", ".2f"),
    "ms": ("median_ms", ".0f"),
    "gradient error": ("error", ".1e"),
}
PAGES = {"README.md": ("x bare", "gradient error"), "docs/loss.md": ("x bare", "ms", "gradient error")}
SHAPES_PAGE = "docs/loss.md"
COMPARED = {"fastdense native": "fastdense", "fastdense through autograd": "by autograd", "naive autograd": "naive"}

Row = dict[str, Any]


def table(columns: tuple[str, ...], reports: list[Row]) -> str:
    """A Markdown table: a line for each provider, a column for each report."""
    found = [_rows(report) for report in reports]
    lines = ["| | " + " | ".join(f"{report['dtype']}: {', '.join(columns)}" for report in reports) + " |"]
    lines.append("|---" * (len(reports) + 1) + "|")
    for provider in found[0]:
        cells = [_cell(rows[provider], columns) if provider in rows else "" for rows in found]
        lines.append(f"| {LABELS.get(provider, provider)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shapes_table(reports: list[Row]) -> str:
    """A line for each shape: the times of the compared providers over the bare products'."""
    titles = [f"{report['dtype']}: {', '.join(COMPARED.values())}" for report in reports]
    lines = [f"| N x M x D | {' | '.join(titles)} |"]
    lines.append("|---" * (len(reports) + 1) + "|")
    for shape in sorted(tuple(result["shape"]) for result in reports[0]["results"]):
        found = [_rows(report, shape) for report in reports]
        cells = [", ".join(_cell(rows[provider], ("x bare",)) for provider in COMPARED) for rows in found]
        lines.append(f"| {' x '.join(f'{size:,}' for size in shape)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(report: Row, shape: tuple[int, ...] = SHAPE) -> dict[str, Row]:
    """By provider; of the ways to ask for the bare products only the fastest."""
    result = next(result for result in report["results"] if tuple(result["shape"]) == shape)
    bare = [row for row in result["rows"] if row["provider"].startswith(BARE)]
    fastest = min(bare, key=lambda row: float(row["median_ms"]))
    others = {row["provider"]: row for row in result["rows"] if row not in bare}
    return {"three bare products, the faster of MKL and oneDNN": fastest, **others}


def _cell(row: Row, columns: tuple[str, ...]) -> str:
    if row.get("reason") is not None:
        return f"cannot: {row['reason']}"
    if row["median_ms"] is None:
        return f"wrong: error {row['error']:.1e}"
    fields = [COLUMNS[column] for column in columns]
    return ", ".join(format(row[name], form) for name, form in fields if row[name] is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args()
    reports = [json.loads((ROOT / f"benches/results/{NAME}-{dtype}.json").read_text()) for dtype in DTYPES]
    differing = []
    for page, columns in PAGES.items():
        old = (ROOT / page).read_text(encoding="utf-8")
        new = with_table(old, table(columns, reports), START, ROOT / page)
        if page == SHAPES_PAGE:
            new = with_table(new, shapes_table(reports), SHAPES_START, ROOT / page)
        if new != old:
            differing.append(page)
        if not arguments.check:
            (ROOT / page).write_text(new, encoding="utf-8")
    if arguments.check and differing:
        sys.exit(f"table: benches/results and {', '.join(differing)} differ: run python -m benches table")


if __name__ == "__main__":
    main()
