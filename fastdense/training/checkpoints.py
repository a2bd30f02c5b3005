"""Checkpoints that are whole or absent, and load wherever the finished model loads."""

import contextlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from fastdense.errors import UserError
from fastdense.files import (
    check_takes_files,
    leftovers,
    publish_directory,
    publish_files,
    remove,
    remove_directory,
)
from fastdense.modeling.load import load_weights
from fastdense.modeling.lora import has_lora, load_trained, merged, save_trained
from fastdense.modeling.save import retriever_entries, save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.training.arguments import RetrieverTrainingArguments
from fastdense.training.run_record import FILES as RECORD
from fastdense.training.run_record import RUN

_STATE = "trainer_state.json"
_BEFORE_ANY_CHECKPOINT = ("runs", *RECORD)  # tensorboard's, and all else that a run killed early has written
_STAGING = ".saving"  # inside output_dir; the same name on all ranks


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in ``output_dir``, oldest first. A directory by that name is whole: it came by one rename."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def find_checkpoint(request: str | None, output_dir: str) -> str | None:
    """The checkpoint that ``--resume_from_checkpoint`` names, checked; None to start from the beginning.

    ``true`` is the last one of ``output_dir``, ``auto`` the last one if there is any, anything else a directory.
    """
    if request is None or request.lower() in ("false", "no"):
        return None
    if request.lower() in ("true", "auto"):
        checkpoints = whole_checkpoints(output_dir)
        if not checkpoints and request.lower() == "auto":
            return None
        if not checkpoints:
            raise UserError(
                f"--resume_from_checkpoint true: there is no checkpoint-* in {output_dir}; "
                "use auto to start from the beginning where there is none"
            )
        request = str(checkpoints[-1])
    _check(Path(request))
    return request


def _check(checkpoint: Path) -> None:
    advice = "resume from another checkpoint"
    if not checkpoint.is_dir():
        raise UserError(f"--resume_from_checkpoint: {checkpoint} is no directory; name a checkpoint-*, true or auto")
    random_states = sorted(path.name for path in checkpoint.glob("rng_state*.pth"))
    for name in (_STATE, "optimizer.pt", "scheduler.pt", *(random_states or ["rng_state.pth"])):
        if not (checkpoint / name).is_file():
            raise UserError(f"{checkpoint} is no whole checkpoint: {name} is missing; {advice}")
        if name.endswith((".pt", ".pth")) and not zipfile.is_zipfile(checkpoint / name):
            raise UserError(f"{checkpoint / name} is damaged; {advice}")
    try:
        steps = TrainerState.load_from_json(str(checkpoint / _STATE)).global_step
    except (ValueError, TypeError):
        steps = 0
    if steps < 1:
        raise UserError(f"{checkpoint / _STATE} is damaged; {advice}")


def prepare_output_dir(args: RetrieverTrainingArguments, *, resuming: bool) -> None:
    """Refuse to mix two runs in one directory; the first process sweeps out what a killed run left unfinished.

    All processes ask, so that a refusal ends them all at once; none has written anything yet.
    """
    directory = Path(args.output_dir)
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--output_dir {directory} is a file; name a directory")
    unfinished = {*directory.glob(f"{_STAGING}*"), *leftovers(directory)}
    others = {*directory.glob("*")} - unfinished - {directory / name for name in _BEFORE_ANY_CHECKPOINT}
    if others and not (resuming or args.overwrite_output_dir):
        raise UserError(
            f"--output_dir {directory} is not empty; pass --overwrite_output_dir to train into it anew, "
            "or --resume_from_checkpoint true to go on"
        )
    if args.process_index == 0:
        for path in unfinished:
            remove(path)
        try:
            check_takes_files(directory)
        except OSError as error:
            raise UserError(f"--output_dir {directory} cannot be written: {error.strerror}") from error


def is_finished(output_dir: str, step: int) -> bool:
    """Whether ``output_dir`` holds all that a run leaves that ended with ``step``.

    Its state is what a run writes last, and removes before it trains.
    """
    try:
        state = TrainerState.load_from_json(str(Path(output_dir, _STATE)))
    except (OSError, ValueError, TypeError):
        return False
    return state.global_step == step and bool(retriever_entries(Path(output_dir)))


class _NothingLeft(Exception):
    """The checkpoint is one of the last step."""


class _Beginning(TrainerCallback):
    """Comes before all other callbacks: they are not told of a run that has nothing left to train.

    The library's loop asks behind a step whether it was the last: in the middle of an epoch it would train another one.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps:
            raise _NothingLeft
        if state.is_world_process_zero:
            Path(args.output_dir, _STATE).unlink(missing_ok=True)  # see is_finished


class CheckpointingTrainer(Trainer):
    """How a run is saved and resumed: everything else is the stock trainer's.

    A checkpoint is written into a hidden directory and renamed when all ranks have finished with it. Model, tokenizer
    and settings are in it, so that every checkpoint is a retriever that loads like the finished one.
    """

    settings: RetrieverSettings
    # Flags whose value a resumed run takes from the optimizer's state in its checkpoint.
    kept_on_resume: tuple[str, ...] = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    _staging: Path | None = None

    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.callback_handler.callbacks.insert(0, _Beginning())

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> TrainOutput | None:
        """Train from the beginning, or from a checkpoint that :func:`find_checkpoint` returned.

        None if nothing is left to train after the checkpoint: the model is then what the run ended with.
        """
        if resume_from_checkpoint is None and self.args.should_save:
            for checkpoint in whole_checkpoints(self.args.output_dir):  # an overwritten run's: not to be resumed from
                remove_directory(checkpoint)
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except _NothingLeft:
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
                self._load_best_model()
            return None

    def init_hf_repo(self, *_: object, **__: object) -> None:
        """Nothing: :class:`fastdense.training.hub_push.HubPush` pushes whole directories, once they are published."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        return None

    def push_to_hub(self, *_: object, **__: object) -> None:
        """Nothing, as above."""

    def _get_output_dir(self, trial: object) -> str:
        return self.args.output_dir if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        checkpoint = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with self._staged() as staging:
            best = self.state.best_model_checkpoint
            super()._save_checkpoint(model, trial)
            is_best = self.state.best_global_step == self.state.global_step
            self.state.best_model_checkpoint = str(checkpoint) if is_best else best
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(staging / checkpoint.name / _STATE))
                self._keep_flags(staging / checkpoint.name)
                publish_directory(staging / checkpoint.name, checkpoint)
                self._remove_old_checkpoints(checkpoint)
        self.accelerator.wait_for_everyone()

    def _keep_flags(self, checkpoint: Path) -> None:
        """The run's own record follows the run: a checkpoint has that of the flags that it was made with."""
        if (record := Path(self.args.output_dir, RUN)).is_file():
            shutil.copyfile(record, checkpoint / RUN)

    @contextlib.contextmanager
    def _staged(self) -> Iterator[Path]:
        staging = Path(self.args.output_dir, _STAGING)
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # what a killed run left
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            yield staging
        finally:
            self._staging = None
            if self.args.should_save:
                with contextlib.ExitStack() as stack:  # once more, if a signal ends the first
                    stack.callback(shutil.rmtree, staging, ignore_errors=True)
                    shutil.rmtree(staging, ignore_errors=True)

    def _remove_old_checkpoints(self, newest: Path) -> None:
        if self.args.save_total_limit is None:
            return
        present = whole_checkpoints(self.args.output_dir)
        spare = [path for path in present if path != newest and str(path) != self.state.best_model_checkpoint]
        for path in spare[: max(0, len(present) - self.args.save_total_limit)]:
            remove_directory(path)

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        if not self.args.should_save:  # newer transformers call this on every rank
            return
        directory = Path(output_dir or self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{_STAGING}-", dir=directory))
        try:
            save_retriever(merged(self.model), self.processing_class, staging, self.settings)
            if has_lora(self.model):
                save_trained(self.model, staging)
            for name in retriever_entries(directory) - {entry.name for entry in staging.iterdir()}:
                remove(directory / name)  # an overwritten model of another kind: its parts would be taken for ours
            publish_files(staging, directory)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self._load_weights(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        settings = [set(group) for group in self.optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
            fits = all(own <= set(group) for own, group in zip(settings, self.optimizer.param_groups, strict=True))
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:  # found here, and not by a KeyError in the first step
            raise UserError(
                f"{checkpoint}: the state of its optimizer does not fit --optim {self.args.optim.value}; "
                "resume with the flags that the run began with"
            )

    def _load_best_model(self) -> None:
        self._load_weights(self.state.best_model_checkpoint)

    def _load_weights(self, checkpoint: str) -> None:
        if has_lora(self.model):  # a checkpoint's weights are merged and rounded
            load_trained(self.model, Path(checkpoint))
        else:
            load_weights(self.model, checkpoint)
