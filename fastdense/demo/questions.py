"""A few questions as people type them, and what the model finds for each."""

import json
import textwrap
from pathlib import Path

from fastdense.retrieval.evaluation_set import EvaluationSet
from fastdense.retrieval.rankings import Run

QUESTIONS = (
    "fetch a web page over http",
    "read the attachments of an email",
    "wait until all tasks are done",
    "write log messages to a file",
    "parse an xml document from a string",
)
_ANSWERS = 3
_WIDTH = 100


def write_questions(path: Path) -> None:
    """Write the questions as rows that ``fastdense.encode`` reads."""
    rows = [json.dumps({"query_id": f"question-{number}", "query": text}) for number, text in enumerate(QUESTIONS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def print_answers(run: Run, texts: EvaluationSet) -> None:
    """Print the best passages for each question: score, title and the beginning of the text."""
    passages = {passage.text_id: passage for passage in texts.passages}
    for number, question in enumerate(QUESTIONS):
        print(f"\n  {question}")
        found = run[f"question-{number}"]
        for passage_id, score in list(zip(found.passage_ids, found.scores, strict=True))[:_ANSWERS]:
            passage = passages[passage_id]
            text = textwrap.shorten(passage.text, _WIDTH - 8, placeholder=" ...")
            print(f"    {score:.2f}  {passage.title}\n          {text}")
