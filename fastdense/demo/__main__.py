"""``python -m fastdense.demo``: train a small retriever on text that is here already, and search with it."""

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from fastdense.command import run
from fastdense.demo.baseline import identifier_words, measure_bm25, stock_words
from fastdense.demo.commands import ENCODER, JAX, TORCH, Driver, command_line, retrieve, show_and_run, training_flags
from fastdense.demo.questions import print_answers, write_questions
from fastdense.demo.report import MEASURES, print_heading, print_result, print_whereabouts, read_measures
from fastdense.errors import UserError
from fastdense.retrieval.evaluation_set import read_evaluation_set
from fastdense.retrieval.rankings import read_run


@dataclass(frozen=True)
class Size:
    """What is read, how long it is trained on, and how many times better MRR@10 has to become."""

    sources: tuple[str, ...]
    steps: int
    eval_steps: int
    gain: float


FULL = Size(("stdlib",), steps=250, eval_steps=50, gain=5)
SHORT = Size(
    ("asyncio", "email", "http", "json", "logging", "unittest", "urllib", "xml"), steps=24, eval_steps=12, gain=1.3
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdense.demo",
        description="Train a small retriever on Python's own documentation, without any download, and search with it.",
        allow_abbrev=False,
    )
    parser.add_argument("--output_dir", type=Path, default=Path("demo-output"), help="default: %(default)s")
    parser.add_argument("--short", action="store_true", help="less text and fewer steps, for a quick check")
    parser.add_argument("--jax", action="store_true", help="train and encode with JAX, on eight simulated devices")
    arguments = parser.parse_args()
    started = time.monotonic()
    demonstrate(arguments.output_dir, SHORT if arguments.short else FULL, JAX if arguments.jax else TORCH)
    print(f"The demo took {time.monotonic() - started:.0f} s.")


def demonstrate(output_dir: Path, size: Size, driver: Driver) -> None:
    """Make data, measure, train, measure again, answer questions, compare.

    Raises:
        UserError: a command failed, or MRR@10 became less than ``size.gain`` times better.
    """
    data, model, questions = output_dir / "data", output_dir / "model", output_dir / "questions.jsonl"
    print_heading("1. Data: a docstring's summary is the query, all else about its object is the passage")
    show_and_run("fastdense.builtin_data", {"output_dir": data, "source": list(size.sources)})
    write_questions(questions)
    print_heading("2. Before: a BERT with random weights searches, for queries on held-out modules")
    retrieve(driver, data / "model", data / "test", questions, output_dir / "before", ENCODER)
    print_heading("3. Training on the other modules")
    training = training_flags(driver, data, model, size.steps, size.eval_steps)
    show_and_run(driver.train, training, driver.environment)
    shutil.copyfile(model / "training_curve.png", output_dir / "training_curve.png")
    print_heading("4. After: the trained model searches for the same")
    retrieve(driver, model, data / "test", questions, output_dir / "after", {})

    texts = read_evaluation_set(data / "test")
    print_heading("5. Typed questions")
    print_answers(read_run(output_dir / "after" / "run.txt"), texts)
    print_heading("6. Result")
    measured = {name: read_measures(output_dir / name) for name in ("before", "after")}
    measured["bm25"] = measure_bm25(texts, MEASURES, stock_words)
    measured["bm25_words"] = measure_bm25(texts, MEASURES, identifier_words)
    (output_dir / "result.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print_result(measured, len(texts.queries), len(texts.passages))
    print_whereabouts(output_dir, command_line(driver.train, training, driver.environment))
    if measured["after"]["mrr@10"] < size.gain * measured["before"]["mrr@10"]:
        raise UserError(
            f"training was to make MRR@10 {size.gain} times better and did not: this is a defect, report it"
        )


if __name__ == "__main__":
    run(main)
