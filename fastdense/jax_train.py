"""``python -m fastdense.jax_train``: train a dense retriever with JAX, on TPUs, GPUs or CPUs."""

from collections.abc import Sequence

from fastdense.command import run
from fastdense.jax.available import check_jax
from fastdense.training.arguments import ContrastiveArguments, DataArguments, ModelArguments
from fastdense.training.parser import parse_arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> training run."""
    check_jax()
    from fastdense.jax.arguments import JaxTrainingArguments

    parsed = parse_arguments(
        "fastdense.jax_train",
        "Train a dense retriever (bi-encoder) with in-batch negatives, with JAX.",
        (ModelArguments, DataArguments, ContrastiveArguments, JaxTrainingArguments),
        arguments,
    )
    from fastdense.jax.run import train

    train(*parsed)


if __name__ == "__main__":
    run(main)
