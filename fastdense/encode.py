"""``python -m fastdense.encode``: texts to files of vectors."""

import functools
from collections.abc import Sequence

from fastdense.command import run
from fastdense.retrieval.arguments import EncodeArguments, EncoderArguments
from fastdense.retrieval.encode import encode_texts
from fastdense.retrieval.encode_files import check_save_path, encode_to_files, find_texts
from fastdense.retrieval.loading import as_asked, describe_encoder, load_encoder
from fastdense.training.parser import parse_arguments

PROG = "fastdense.encode"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> model and texts -> vectors -> files."""
    model, data = parse_arguments(
        PROG, "Encode queries or passages with a trained retriever.", (EncoderArguments, EncodeArguments), arguments
    )
    check_save_path(data, model.model_name_or_path)
    encoder, tokenize, precision = load_encoder(model, data)
    encode = functools.partial(
        encode_texts, encoder, tokenize, batch_size=model.per_device_eval_batch_size, precision=precision
    )
    encode_to_files(
        as_asked(encode, model, encoder),
        find_texts(data, model.cache_dir),
        data,
        functools.partial(describe_encoder, encoder, tokenize, precision, model.truncate_dim),
    )


if __name__ == "__main__":
    run(main)
