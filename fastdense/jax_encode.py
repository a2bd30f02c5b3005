"""``python -m fastdense.jax_encode``: texts to a file of vectors, with JAX."""

from collections.abc import Sequence

from fastdense.command import run
from fastdense.data.sources import find_source
from fastdense.jax.available import check_jax
from fastdense.retrieval.arguments import EncodeArguments
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.progress import progress_bar
from fastdense.retrieval.representations import Representations, write_representations
from fastdense.retrieval.texts import read_texts
from fastdense.training.parser import parse_arguments

PROG = "fastdense.jax_encode"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> model and texts -> vectors -> a file."""
    check_jax()
    from fastdense.jax.encode_run import JaxEncoderArguments, load_jax_encoder

    model, data = parse_arguments(
        PROG,
        "Encode queries or passages with a trained retriever, with JAX.",
        (JaxEncoderArguments, EncodeArguments),
        arguments,
    )
    check_writable(data.encoded_save_path)
    encode = load_jax_encoder(model, data)
    texts = read_texts(
        find_source(data.encode_in_path, data.dataset_name, model.cache_dir),
        is_query=data.encode_is_qry,
        num_shards=data.encode_num_shard,
        shard_index=data.encode_shard_index,
    )
    with progress_bar("Encoding", len(texts)) as on_batch:
        vectors = encode(texts, on_batch)
    write_representations(data.encoded_save_path, Representations([text.text_id for text in texts], vectors))
    print(f"{len(texts)} vectors of {vectors.shape[1]} dimensions are in {data.encoded_save_path}")


if __name__ == "__main__":
    run(main)
