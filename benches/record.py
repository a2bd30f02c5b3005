"""Measure the loss on this machine and renew everything that shows the result: JSON, tables and pictures.

    python -m benches record --threads 2

For a quiet machine; a few minutes. It writes benches/results/NAME-DTYPE.json, docs/loss-NAME-DTYPE.svg, and, where NAME
is the machine that README.md and docs/loss.md show, their tables.
"""

import argparse
import subprocess
import sys

from benches import table
from benches.pages import ROOT

# Beside the squares that --sweep adds: what the tables show, a smaller one, and those that are all overhead.
SHAPES = ["x".join(map(str, table.SHAPE)), "1024x2048x384", "32x64x768", "1x64x768"]


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "benches", *arguments], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default=table.NAME, help="what the files are called")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--repeats", default="7")
    arguments = parser.parse_args()
    shapes = [part for shape in SHAPES for part in ("--shape", shape)]
    files = [f"benches/results/{arguments.name}-{dtype}.json" for dtype in table.DTYPES]
    for dtype, file in zip(table.DTYPES, files, strict=True):
        how = ["--device", arguments.device, "--threads", arguments.threads, "--repeats", arguments.repeats]
        run("contrastive_loss", "--dtype", dtype, *how, "--sweep", *shapes, "--output", str(ROOT / file))
    run("plot", *files)
    if arguments.name == table.NAME:
        run("table")


if __name__ == "__main__":
    main()
