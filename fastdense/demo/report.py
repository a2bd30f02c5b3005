"""What the demo prints about its outcome."""

import json
from collections.abc import Mapping
from pathlib import Path

MEASURES = ("mrr@10", "recall@10")

_LABELS = {
    "before": "before training",
    "after": "after training",
    "bm25": "BM25 (bm25s as it comes)",
    "bm25_words": "BM25, identifiers split",
}
_VERDICTS = ("not as good as", "better in one measure and worse in the other than", "better than")

Measured = Mapping[str, Mapping[str, float]]  # by "before", "after", "bm25"


def print_heading(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


def read_measures(directory: Path) -> dict[str, float]:
    """What ``fastdense.evaluate`` wrote into ``directory``."""
    values = json.loads((directory / "measures.json").read_text(encoding="utf-8"))
    return {name: values[name] for name in MEASURES}


def print_result(measured: Measured, queries: int, passages: int) -> None:
    """Print the table of measures and how the trained model compares."""
    print(f"{queries} queries on held-out modules, searched among all {passages} passages:\n")
    print(f"  {'':30}{'MRR@10':>8}{'recall@10':>12}")
    for key, label in _LABELS.items():
        print(f"  {label:30}{measured[key]['mrr@10']:8.3f}{measured[key]['recall@10']:12.3f}")
    print()
    for baseline in ("bm25", "bm25_words"):
        better = [name for name in MEASURES if measured["after"][name] > measured[baseline][name]]
        print(f"The trained model is {_VERDICTS[len(better)]} {_LABELS[baseline]}.")


def print_whereabouts(output_dir: Path, training_command: str) -> None:
    """Print where everything is, and how the model was trained."""
    model = output_dir / "model"
    print(f"\n  model     {model.resolve()}   (SentenceTransformer({str(model)!r}) loads it)")
    print(f"  picture   {(output_dir / 'training_curve.png').resolve()}")
    print(f"  measures  {(output_dir / 'result.json').resolve()}")
    print(f"\nThe model was trained by\n\n  {training_command}\n")
