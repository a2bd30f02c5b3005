"""``python -m fastdense.builtin_data``: write the built-in data set, made from installed Python documentation."""

import argparse
from pathlib import Path

from fastdense.command import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastdense.builtin_data", description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="the directory to write; replaced if it exists")
    parser.add_argument(
        "--source",
        nargs="+",
        default=["stdlib"],
        metavar="PACKAGE",
        help="'stdlib' (default) and import names of installed packages, such as numpy torch",
    )
    arguments = parser.parse_args()

    from fastdense.data.builtin import write_builtin_data  # transformers takes seconds: not for --help

    retrieval_set = write_builtin_data(arguments.output_dir, arguments.source)
    for split, passages in retrieval_set.passages.items():
        print(f"{split:5} {len(passages):6} passages {len(retrieval_set.queries[split]):6} queries")
    print(f"written to {arguments.output_dir}")


if __name__ == "__main__":
    run(main)
