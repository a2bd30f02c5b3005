"""The progress bar: where the run is, and how it goes."""

from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

_SHORT = {"loss": "loss", "accuracy": "acc", "learning_rate": "lr", "examples_per_second": "ex/s"}


class ProgressBar(ProgressCallback):
    """The stock bar; the figures of the last log stand behind it, and metrics get a line of their own."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix({short: f"{logs[key]:.4g}" for key, short in _SHORT.items() if key in logs})
        else:
            shown = {key: value for key, value in logs.items() if key not in ("total_flos", "epoch")}
            figures = "  ".join(f"{key.removeprefix('eval_')} {value:.4g}" for key, value in shown.items())
            self.training_bar.write(f"step {state.global_step}: {figures}")
