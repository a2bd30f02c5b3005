"""A log that covers every step, and the mean loss that can be had from it."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


class WholeLog(TrainerCallback):
    """Also logs a line at every checkpoint, at every evaluation and at the end, however rare ``--logging_steps`` are.

    A short run so has a loss to tell, and no step's loss is lost with the process that resumes from a checkpoint. Only
    ``--logging_strategy no`` has no line at all.

    Attributes:
        began_at: the step of the checkpoint that the run was resumed from, or 0.
    """

    began_at = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where this process begins."""
        self.began_at = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The library's own callback comes before and has decided what is due."""
        due = control.should_save or control.should_evaluate or control.should_training_stop
        if due and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


def mean_loss(history: Sequence[dict[str, Any]], began_at: int, last_step: int) -> float | None:
    """The mean loss over the steps up to ``last_step``; None if the log does not cover them all.

    ``history`` is the log of all lives of a run: a line's ``loss`` is the mean over the steps since the line before, or
    since ``began_at``, where the last life began.
    """
    lines = [(line["step"], line["loss"]) for line in history if "loss" in line]
    ends = [0, *(step for step, _ in lines)]
    if not lines or began_at not in ends or ends[-1] != last_step:
        return None
    return sum(loss * (end - begin) for begin, (end, loss) in zip(ends, lines, strict=False)) / last_step
