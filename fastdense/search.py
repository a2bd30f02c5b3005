"""``python -m fastdense.search``: vectors of queries and passages to a ranking; or rankings of shards to one."""

from collections.abc import Sequence
from pathlib import Path

from fastdense.command import run
from fastdense.retrieval.arguments import SearchArguments
from fastdense.retrieval.nearest import search_device
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.progress import progress_bar
from fastdense.retrieval.rankings import Run, merge_runs, ranking_files, read_run, write_run
from fastdense.retrieval.representations import files_with_ids, read_representations, representation_files, with_ids
from fastdense.retrieval.search import search_shards
from fastdense.training.parser import parse_arguments

PROG = "fastdense.search"
DEPTH = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> ranking -> a file."""
    (args,) = parse_arguments(
        PROG, "Search passages by exact inner product, or merge rankings of shards.", (SearchArguments,), arguments
    )
    check_writable("--save_ranking_to", args.save_ranking_to, inputs(args))
    ranking = merge(args) if args.merging else search(args)
    write_run(args.save_ranking_to, ranking, args.output_format)
    print(f"the ranking of {len(ranking)} queries is in {args.save_ranking_to}")


def inputs(args: SearchArguments) -> dict[str, list[Path]]:
    """The files that are read, by flag."""
    return {
        "--query_reps": with_ids(args.query_reps) if args.query_reps else [],
        "--passage_reps": files_with_ids(args.passage_reps) if args.passage_reps else [],
        "--merge": [Path(file) for file in args.merge or []],
        "--score_dir": ranking_files(args.score_dir) if args.score_dir else [],
    }


def search(args: SearchArguments) -> Run:
    """Search the files of passages one after the other."""
    assert args.query_reps is not None  # as SearchArguments has checked
    assert args.passage_reps is not None
    files = representation_files(args.passage_reps)
    queries = read_representations(args.query_reps)
    shards = (read_representations(file) for file in files)
    with progress_bar("Searching", len(files) * len(queries.ids), "query") as on_batch:
        return search_shards(queries, shards, args.depth or DEPTH, args.batch_size, on_batch, search_device())


def merge(args: SearchArguments) -> Run:
    """Merge the rankings of shards that were searched separately."""
    files = ranking_files(args.score_dir) if args.score_dir is not None else [Path(file) for file in args.merge or []]
    query_ids = None if args.query_reps is None else read_representations(args.query_reps).ids
    return merge_runs(((str(file), read_run(file, query_ids)) for file in files), args.depth)


if __name__ == "__main__":
    run(main)
