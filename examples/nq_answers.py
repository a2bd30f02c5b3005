"""In how many questions of Natural Questions an answer stands in one of the k best passages (DPR's "top-k accuracy").

python examples/nq_answers.py RANKING QUESTIONS CORPUS      the last two: files, or data sets of the hub by name

Question rows have ``{query_id, answers}``, passages ``{docid, title, text}``. An answer counts where its words follow
one another in the passage's text, cases and compositions of letters aside: DPR's ``has_answer`` (arXiv 2004.04906).
"""

import sys
import unicodedata
from pathlib import Path

import regex

from fastdense.data.files import Source
from fastdense.data.sources import find_source
from fastdense.retrieval.rankings import read_run

WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
DEPTHS = (20, 100)


def words(text: str) -> str:
    """The words and signs of a text, a space around each."""
    return f" {' '.join(WORD.findall(unicodedata.normalize('NFD', text).lower()))} "


def rows_of(name: str) -> Source:
    """A file or directory, or a data set of the hub."""
    return find_source(name, "json") if Path(name).exists() else find_source(None, name)


def main(ranking: str, questions: str, corpus: str) -> None:
    """Print the accuracies over all questions; one that found nothing counts as wrong."""
    run = {query: found.passage_ids[: max(DEPTHS)] for query, found in read_run(ranking).items()}
    wanted = {passage for passages in run.values() for passage in passages}
    texts = {row["docid"]: words(row["text"]) for _, row in rows_of(corpus).read() if row["docid"] in wanted}
    first = []  # the place of the first passage with an answer, for every question
    for _, row in rows_of(questions).read():
        answers = [words(answer) for answer in row["answers"]]
        hits = (any(answer in texts[passage] for answer in answers) for passage in run.get(row["query_id"], []))
        first.append(next((place for place, hit in enumerate(hits) if hit), max(DEPTHS)))
    for depth in DEPTHS:
        print(f"top-{depth} accuracy: {sum(place < depth for place in first) / len(first):.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
