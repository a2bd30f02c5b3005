"""What a run leaves beside the model: the flags that repeat it, where it ran, how it went, and a picture of that.

``run.yaml`` and ``environment.json`` are there from the beginning; ``metrics.json`` and ``training_curve.png`` follow
the run and are final when it ends. The first process writes them, each whole or not at all.
"""

import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fastdense import environment
from fastdense.data.hub import HUB_PREFIX, is_on_hub, parse_dataset_name
from fastdense.files import atomic_file
from fastdense.modeling.model_card import Provenance
from fastdense.training.flag_checks import MEASURES, default_of
from fastdense.training.whole_log import mean_loss

logger = logging.getLogger(__name__)

RUN, ENVIRONMENT, METRICS, CURVE = "run.yaml", "environment.json", "metrics.json", "training_curve.png"
FILES = (RUN, ENVIRONMENT, METRICS, CURVE)

# A secret, and what would make a repetition overwrite or go on with the run that it repeats.
_LEFT_OUT = ("hub_token", "overwrite_output_dir", "resume_from_checkpoint")
_SHARE = 0.02  # of the time that drawing while training may take


def given_flags(*arguments: Any) -> dict[str, Any]:
    """The flags that differ from their defaults: what ``--config`` needs to repeat the run.

    ``arguments`` are dataclasses; one that completes its own fields keeps what it was given as ``given``.
    """
    flags: dict[str, Any] = {}
    for instance in arguments:
        for each in fields(instance):
            value = instance.given[each.name] if hasattr(instance, "given") else getattr(instance, each.name)
            if not _is_default(value, default_of(each)):
                flags[each.name] = value
    return {name: value for name, value in flags.items() if name not in _LEFT_OUT}


def defaults(*arguments: Any) -> dict[str, Any]:
    """What each flag of the dataclasses is when it is not given."""
    return {each.name: default_of(each) for instance in arguments for each in fields(instance)}


def _is_default(value: Any, default: Any) -> bool:
    if value is False and default == "no":  # the parser has read the default as what it means
        return True
    return value is None or value in ([], {}) or (value == default and type(value) is type(default))


class RunRecord(TrainerCallback):
    """Keeps the record of a run in its ``output_dir``.

    Args:
        flags: what :func:`given_flags` returns.
    """

    def __init__(self, flags: dict[str, Any]) -> None:
        self.flags = flags
        self._started = self._drawn = time.perf_counter()
        self._cost = 0.0
        self._tells_missing = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is known before the first step."""
        if state.is_world_process_zero:
            self._started = self._drawn = time.perf_counter()
            _write(Path(args.output_dir, RUN), _as_yaml(self.flags))
            facts = {"started": datetime.now(UTC).isoformat(timespec="seconds"), **environment.facts(args.world_size)}
            _write(Path(args.output_dir, ENVIRONMENT), _as_json(facts))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Follow the run, unless the last time was too recent for what it costs."""
        if state.is_world_process_zero and (time.perf_counter() - self._drawn) * _SHARE > max(self._cost, 0.1):
            self._update(args, state, finished=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the final figures."""
        if state.is_world_process_zero:
            self._update(args, state, finished=True)

    def complete(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Write everything for a run that was killed behind its last step, from the log in its last checkpoint."""
        if (mean := mean_loss(state.log_history, 0, state.global_step)) is not None:
            state.log_history.append({"train_loss": mean, "epoch": state.epoch, "step": state.global_step})
        self.on_train_begin(args, state, control)
        self.on_train_end(args, state, control)

    def _update(self, args: TrainingArguments, state: TrainerState, *, finished: bool) -> None:
        begun = time.perf_counter()
        measured = {"finished": finished, **summary(state.log_history, begun - self._started), **_best(args, state)}
        _write(Path(args.output_dir, METRICS), _as_json(measured))
        self._draw(state.log_history, Path(args.output_dir, CURVE))
        self._drawn = time.perf_counter()
        self._cost = self._drawn - begun

    def _draw(self, history: Sequence[dict[str, Any]], picture: Path) -> None:
        if find_spec("matplotlib") is not None:
            from fastdense.training.curve import draw_training_curve  # half a second to import

            draw_training_curve(history, picture)
        elif self._tells_missing:
            self._tells_missing = False
            logger.info("no %s: matplotlib is not installed; pip install 'fastdense[demo]'", picture.name)


def summary(history: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The figures of a run from its log; those that were not logged are left out.

    ``loss`` and ``accuracy`` are the last that were logged, ``train_loss`` is the mean over all steps,
    ``examples_per_second`` the median over the log's lines, ``padding`` their mean, ``evaluation`` the last measured.
    """
    lines = [line for line in history if "loss" in line]
    measured = [line for line in history if any(key.startswith("eval_") for key in line)]
    last = {**(history[-1] if history else {}), **(lines[-1] if lines else {})}
    figures: dict[str, Any] = {"steps": last.get("step"), "epochs": last.get("epoch"), "loss": last.get("loss")}
    figures["train_loss"] = history[-1].get("train_loss") if history else None
    figures["accuracy"] = last.get("accuracy")
    for name, mean in (("examples_per_second", statistics.median), ("padding", statistics.fmean)):
        values = [line[name] for line in lines if name in line]
        figures[name] = mean(values) if values else None
    figures["evaluation"] = _evaluation(measured[-1]) if measured else None
    figures["duration_seconds"] = round(seconds, 2)
    return {name: value for name, value in figures.items() if value is not None}


def provenance(data: Any, args: TrainingArguments, state: TrainerState, repository: str | None) -> Provenance:
    """What the trained retriever's card says about its training."""
    told = summary(state.log_history, 0.0)
    named = data.train_dir or [HUB_PREFIX + name for name in data.dataset_name]
    on_hub = [name.removeprefix(HUB_PREFIX) for name in named if is_on_hub(name)]
    facts = {
        "Data": ", ".join(name.removeprefix(HUB_PREFIX) if is_on_hub(name) else Path(name).name for name in named),
        "Steps / epochs": f"{told.get('steps')} / {told.get('epochs', 0):.4g}",
        "Queries per step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "Passages per query": data.train_n_passages,
        "Processes": args.world_size,
        "Mean loss": _rounded(told.get("train_loss")),
        "Last in-batch accuracy": _rounded(told.get("accuracy")),
    }
    kind = " (mean)" if len(args.eval_dir or []) > 1 else ""
    evaluation = _evaluation_of_saved(args, state) or told.get("evaluation", {})
    metrics = {
        name + (kind if name in MEASURES else ""): _rounded(value) for name, value in evaluation.items() if "@" in name
    }
    return Provenance(
        repository=repository,
        datasets=tuple(dict.fromkeys(parse_dataset_name(name).repository for name in on_hub)),
        facts={name: str(value) for name, value in facts.items() if value is not None},
        metrics=metrics,
        metrics_step=evaluation.get("step"),
        command=environment.command(),
        versions=environment.versions(),
    )


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _evaluation(line: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("eval_"): value for key, value in line.items() if key.startswith("eval_") or key == "step"}


def _evaluation_of_saved(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """That of the best model, if it is the one that is saved in the end and not the last."""
    if not args.load_best_model_at_end or state.best_global_step is None:
        return None
    lines = (line for line in state.log_history if line.get("step") == state.best_global_step)
    found = [_evaluation(line) for line in lines if any(key.startswith("eval_") for key in line)]
    return found[-1] if found else None


def _best(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    if state.best_model_checkpoint is None:
        return {}
    checkpoint = Path(state.best_model_checkpoint).name
    return {"best": {args.metric_for_best_model: state.best_metric, "checkpoint": checkpoint}}


def _as_yaml(flags: dict[str, Any]) -> str:
    head = (
        f"# fastdense {environment.version('fastdense')}; repeat this run with\n"
        f"#   python -m MODULE --config {RUN} --output_dir ANOTHER      (MODULE and versions: {ENVIRONMENT})\n"
    )
    return head + yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: their names stand for them."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
