"""``python -m fastdense.evaluate``: a ranking and relevance judgements to measures."""

import json
from collections.abc import Sequence

from fastdense.command import run
from fastdense.files import atomic_file
from fastdense.retrieval.arguments import EvaluateArguments
from fastdense.retrieval.evaluate import evaluate_run, parse_measure
from fastdense.retrieval.output import check_writable
from fastdense.retrieval.qrels import read_qrels
from fastdense.retrieval.rankings import read_run
from fastdense.training.parser import parse_arguments

PROG = "fastdense.evaluate"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> measures -> a table, and a JSON file if one is asked for."""
    (args,) = parse_arguments(PROG, "Measure a ranking against relevance judgements.", (EvaluateArguments,), arguments)
    for measure in args.measures:
        parse_measure(measure)  # a misspelt name is found before large files are read
    if args.output is not None:
        check_writable("--output", args.output, {"--qrels": [args.qrels], "--run": [args.run]})
    qrels, ranking = read_qrels(args.qrels), read_run(args.run)
    values = evaluate_run(qrels, ranking, args.measures)
    width = max(map(len, ["queries", *values]))
    print(f"{'queries':{width}}  {len(qrels)} ({len(qrels.keys() - ranking.keys())} of them without results)")
    for name, value in values.items():
        print(f"{name:{width}}  {value:.4f}")
    if args.output is not None:
        with atomic_file(args.output) as temporary:
            temporary.write_text(json.dumps({"queries": len(qrels), **values}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
