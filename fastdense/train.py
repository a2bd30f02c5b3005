"""``python -m fastdense.train``: train a dense retriever with PyTorch."""

from collections.abc import Sequence

from fastdense.command import run
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.parser import parse_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> training run."""
    parsed = parse_arguments(
        "fastdense.train",
        "Train a dense retriever (bi-encoder) with in-batch negatives.",
        (ModelArguments, DataArguments, ContrastiveArguments, RetrieverTrainingArguments),
        arguments,
    )
    # Behind the flags: the libraries of models and data take seconds, and --help or a misspelt flag needs none.
    from fastdense.training.run import train

    train(*parsed)


if __name__ == "__main__":
    run(main)
