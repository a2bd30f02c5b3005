"""``python -m fastdense.jax_encode``: texts to files of vectors, with JAX."""

from collections.abc import Sequence

from fastdense.command import run
from fastdense.jax.available import check_jax
from fastdense.retrieval.arguments import EncodeArguments
from fastdense.retrieval.encode_files import check_save_path, encode_to_files, find_texts
from fastdense.training.parser import parse_arguments

PROG = "fastdense.jax_encode"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> model and texts -> vectors -> files."""
    check_jax()
    from fastdense.jax.encode_run import JaxEncoderArguments, load_jax_encoder

    model, data = parse_arguments(
        PROG,
        "Encode queries or passages with a trained retriever, with JAX.",
        (JaxEncoderArguments, EncodeArguments),
        arguments,
    )
    check_save_path(data, model.model_name_or_path)
    encode, describe = load_jax_encoder(model, data)
    encode_to_files(encode, find_texts(data, model.cache_dir), data, describe)


if __name__ == "__main__":
    run(main)
