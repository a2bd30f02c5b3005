"""``python -m fastdense.export``: vectors to a faiss index or an Arrow table."""

from collections.abc import Sequence

from fastdense.command import run
from fastdense.retrieval.arguments import ExportArguments
from fastdense.retrieval.export import FLAT, export_index, export_table, index_ids
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.progress import progress_bar
from fastdense.retrieval.representations import files_with_ids, representation_files
from fastdense.training.parser import parse_arguments

PROG = "fastdense.export"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> vectors -> a file for another program."""
    (args,) = parse_arguments(
        PROG, "Export vectors to a faiss index or a Parquet or Arrow table.", (ExportArguments,), arguments
    )
    is_index = args.export_to.endswith(".faiss")
    beside = [index_ids(args.export_to)] if is_index else []
    check_writable("--export_to", args.export_to, {"--passage_reps": files_with_ids(args.passage_reps)}, beside)
    files = representation_files(args.passage_reps)
    with progress_bar("Exporting", len(files), "file") as on_shard:
        if is_index:
            count = export_index(args.export_to, files, args.faiss_factory or FLAT, args.faiss_train_rows, on_shard)
        else:
            count = export_table(args.export_to, files, on_shard)
    print(f"{count} vectors are in {args.export_to}")


if __name__ == "__main__":
    run(main)
