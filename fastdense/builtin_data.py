"""``python -m fastdense.builtin_data``: write the built-in data set, made from installed Python documentation."""

from collections.abc import Sequence
from pathlib import Path

from fastdense.command import CommandParser, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> documentation -> a data set and an untrained model."""
    parser = CommandParser(prog="python -m fastdense.builtin_data", description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="the directory to write; replaced if it exists")
    parser.add_argument(
        "--source",
        nargs="+",
        default=["stdlib"],
        metavar="PACKAGE",
        help="'stdlib' (default) and import names of installed packages, such as numpy torch",
    )
    parsed = parser.parse_args(arguments)

    from fastdense.data.builtin import write_builtin_data  # transformers takes seconds: not for --help

    retrieval_set = write_builtin_data(parsed.output_dir, parsed.source)
    for split, passages in retrieval_set.passages.items():
        print(f"{split:5} {len(passages):6} passages {len(retrieval_set.queries[split]):6} queries")
    print(f"written to {parsed.output_dir}")


if __name__ == "__main__":
    run(main)
