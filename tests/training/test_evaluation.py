"""Measuring while training: several held-out sets, their names, their mean."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdense.errors import UserError
from fastdense.training.evaluation import set_names
from fastdense.training.flag_checks import MEASURES

Train = Callable[..., Path]


def test_each_set_is_measured_and_their_mean_chooses_the_best(
    train_tiny: Train, eval_dir: Path, other_eval_dir: Path
) -> None:
    flags = "--eval_strategy steps --eval_steps 1 --save_strategy steps --save_steps 1 --max_steps 2".split()
    alone = [
        log_of(train_tiny("--eval_dir", str(at), *flags, name=f"by-{at.name}")) for at in (eval_dir, other_eval_dir)
    ]
    output = train_tiny("--eval_dir", str(eval_dir), str(other_eval_dir), *flags, name="both")
    lines = log_of(output)
    assert len(lines) == 2
    for line, first, second in zip(lines, *alone, strict=True):
        for measure in MEASURES:
            assert line[f"eval_held-out_{measure}"] == first[f"eval_{measure}"]
            assert line[f"eval_small_{measure}"] == second[f"eval_{measure}"]
            assert line[f"eval_{measure}"] == pytest.approx((first[f"eval_{measure}"] + second[f"eval_{measure}"]) / 2)
    state = json.loads((output / "trainer_state.json").read_text())
    means = [line["eval_mrr@10"] for line in lines]
    assert state["best_metric"] == max(means)
    assert state["best_global_step"] == 1 + means.index(max(means))
    card = (output / "README.md").read_text()
    assert f"| mrr@10 (mean) | {means[-1]:.4f} |" in card
    assert f"| small_mrr@10 | {lines[-1]['eval_small_mrr@10']:.4f} |" in card


def log_of(output: Path) -> list[dict[str, float]]:
    """The lines of the log that report a measurement."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "eval_mrr@10" in line]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["a/dev"], ["dev"]),
        (["a/dev", "a/test/"], ["dev", "test"]),
        (["a/dev", "b/dev", "b/test"], ["a-dev", "b-dev", "b-test"]),
        (["irds:beir/scifact/test", "irds:beir/nfcorpus/test"], ["scifact-test", "nfcorpus-test"]),
        (["irds:beir/scifact/test", "hub:zeta-alpha-ai/NanoMSMARCO", "dev"], ["test", "NanoMSMARCO", "dev"]),
        (["irds:dev", "hub:dev"], ["irds-dev", "hub-dev"]),
    ],
)
def test_names_are_as_short_as_they_can_be(places: list[str], names: list[str]) -> None:
    assert set_names(places) == names


@pytest.mark.parametrize("places", [["a", "b", "a"], ["a", "./a"], ["irds:a/b", "irds:a/b"]])
def test_a_set_twice_is_refused(places: list[str]) -> None:
    with pytest.raises(UserError, match="names a set twice: leave one out"):
        set_names(places)
