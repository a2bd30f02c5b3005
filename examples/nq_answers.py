"""In how many questions of Natural Questions an answer stands in one of the k best passages (DPR's "top-k accuracy").

python examples/nq_answers.py RANKING QUESTIONS CORPUS      the last two: files, or data sets of the hub by name

Question rows have ``{query_id, answers}``, passages ``{docid, title, text}``. An answer counts where its words follow
one another in the passage's text, cases and compositions of letters aside: DPR's ``has_answer`` (arXiv 2004.04906).
"""

import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import regex

from fastdense.command import run
from fastdense.data.sources import find_source
from fastdense.errors import UserError
from fastdense.retrieval.rankings import read_run

WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
DEPTHS = (20, 100)


def words(text: str) -> str:
    """The words and signs of a text, a space around each."""
    return f" {' '.join(WORD.findall(unicodedata.normalize('NFD', text).lower()))} "


def rows_of(name: str, *fields: str) -> Iterator[dict[str, Any]]:
    """The rows of a file or directory, or of a data set of the hub; all have the ``fields``."""
    source = find_source(name, "json") if Path(name).exists() else find_source(None, name)
    for origin, row in source.read():
        if lacking := [field for field in fields if not isinstance(row, dict) or row.get(field) is None]:
            raise UserError(f"{origin}: the row has no {lacking[0]}; {', '.join(fields)} are needed")
        yield row


def main(ranking: str, questions: str, corpus: str) -> None:
    """Print the accuracies over all questions; one that found nothing counts as wrong."""
    found = {query: best.passage_ids[: max(DEPTHS)] for query, best in read_run(ranking).items()}
    wanted = {passage for passages in found.values() for passage in passages}
    texts = {row["docid"]: words(row["text"]) for row in rows_of(corpus, "docid", "text") if row["docid"] in wanted}
    if absent := sorted(wanted - texts.keys()):
        raise UserError(f"{corpus} has no passage {absent[0]!r}, which {ranking} names: name what was searched")
    first = []  # the place of the first passage with an answer, for every question
    for row in rows_of(questions, "query_id", "answers"):
        answers = [words(answer) for answer in row["answers"]]
        hits = (any(answer in texts[passage] for answer in answers) for passage in found.get(row["query_id"], []))
        first.append(next((place for place, hit in enumerate(hits) if hit), max(DEPTHS)))
    if not first:
        raise UserError(f"{questions} holds no question")
    for depth in DEPTHS:
        print(f"top-{depth} accuracy: {sum(place < depth for place in first) / len(first):.4f}")


def command() -> None:
    """Arguments -> accuracies."""
    if len(sys.argv) != 4:
        raise UserError("usage: python examples/nq_answers.py RANKING QUESTIONS CORPUS")
    main(*sys.argv[1:])


if __name__ == "__main__":
    run(command)
