"""``python -m fastdense.mine``: encoded queries and passages to training rows with hard negatives."""

from collections.abc import Sequence
from pathlib import Path

from fastdense.command import run
from fastdense.data.files import files_source, row_files
from fastdense.errors import UserError
from fastdense.retrieval.arguments import MineArguments
from fastdense.retrieval.mining import mine_negatives
from fastdense.retrieval.mining_rows import (
    Corpus,
    JudgedQuery,
    judged_queries,
    known_positives,
    read_training_queries,
    select_queries,
    write_rows,
)
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.progress import progress_bar
from fastdense.retrieval.qrels import read_qrels
from fastdense.retrieval.representations import files_with_ids, read_representations, representation_files, with_ids
from fastdense.retrieval.text_source import text_files, text_source
from fastdense.retrieval.texts import read_texts
from fastdense.training.parser import parse_arguments

PROG = "fastdense.mine"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> queries and their positives -> negatives -> training rows and a summary."""
    (args,) = parse_arguments(
        PROG, "Mine hard negatives: write training rows with passages that rank high.", (MineArguments,), arguments
    )
    check_writable("--save_rows_to", args.save_rows_to, inputs(args))
    files = representation_files(args.passage_reps)
    vectors = read_representations(args.query_reps)
    corpus = Corpus(text_source(args.corpus, is_query=False))
    judged = read_queries(args, corpus)
    queries = select_queries(vectors, judged)
    shards = (read_representations(file) for file in files)
    with progress_bar("Searching", len(files) * len(judged), "query") as on_batch:
        negatives, summary = mine_negatives(
            queries,
            known_positives(judged, corpus),
            shards,
            args.rules,
            batch_size=args.batch_size,
            on_batch=on_batch,
        )
    if not summary.negatives:
        raise UserError(summary.advice(args.rules))
    write_rows(args.save_rows_to, judged, negatives, corpus)
    for line in summary.lines():
        print(line)
    print(f"{len(judged)} training rows are in {args.save_rows_to}")


def inputs(args: MineArguments) -> dict[str, list[Path]]:
    """The files that are read, by flag."""
    return {
        "--query_reps": with_ids(args.query_reps),
        "--passage_reps": files_with_ids(args.passage_reps),
        "--corpus": text_files(args.corpus),
        "--train_dir": row_files(args.train_dir or ()),
        "--queries": text_files(args.queries),
        "--qrels": [Path(args.qrels)] if args.qrels else [],
    }


def read_queries(args: MineArguments, corpus: Corpus) -> list[JudgedQuery]:
    """The queries and their known positives, from training rows or from judgements."""
    if args.train_dir is not None:
        return read_training_queries(files_source(row_files(args.train_dir)))
    assert args.queries is not None  # as MineArguments has checked
    assert args.qrels is not None
    texts = read_texts(text_source(args.queries, is_query=True), is_query=True)
    judged, without = judged_queries(texts, read_qrels(args.qrels), corpus)
    if without:
        print(f"left out: {without} queries without a relevant passage in the corpus")
    return judged


if __name__ == "__main__":
    run(main)
