"""``--push_to_hub``: checkpoints and the trained directory in a repository of the Hugging Face hub.

The hub is asked before anything is computed. A push that fails while training is a warning, because the next one
carries all there is; the last one ends the command with a sentence, and the directory stays whole.
"""

import inspect
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from fastdense.errors import UserError
from fastdense.modeling.reason import reason

logger = logging.getLogger(__name__)

_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]  # of the library beneath, which changes with the releases
_FAILURES = (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, _HTTPError, OSError)
_LOG_IN = "run `hf auth login` or set HF_TOKEN"
# What only going on with the training needs, and what other runs or killed ones left.
_STATE = ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*", "trainer_state.json", "training_args.bin"]
_OTHERS = [f"{PREFIX_CHECKPOINT_DIR}-*", ".*"]


class HubPush(TrainerCallback):
    """A repository that takes what ``--hub_strategy`` says; only the first process has one.

    Raises:
        UserError: nobody is logged in, the hub refuses the repository, or it is out of reach.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self._api = HfApi(token=args.hub_token)
        self._revision = args.hub_revision
        self._strategy = HubStrategy(args.hub_strategy)
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        try:
            self.repository = self._open(name, args.hub_private_repo)
        except LocalTokenNotFoundError as error:
            raise UserError(
                f"--push_to_hub: you are not logged in to the Hugging Face hub; {_LOG_IN}, or leave it out"
            ) from error
        except _FAILURES as error:
            raise UserError(f"--push_to_hub: {name} cannot be pushed to: {_why(error)}") from error

    def _open(self, name: str, private: bool | None) -> str:
        """Make the repository (and its branch) if need be; returns its full name."""
        self._api.whoami()
        repository = self._api.create_repo(name, private=private, exist_ok=True).repo_id
        if "write" in inspect.signature(self._api.auth_check).parameters:  # newer than the oldest we work with
            self._api.auth_check(repository, write=True)
        if self._revision is not None:
            self._api.create_branch(repository, branch=self._revision, exist_ok=True)
        return repository

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Push the checkpoint that has just been published, and wait for it."""
        if self._strategy == HubStrategy.END:
            return
        checkpoint = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        message = f"Training in progress, step {state.global_step}"
        try:
            self._upload(checkpoint, message, ignore_patterns=_STATE)
            if self._strategy != HubStrategy.EVERY_SAVE:
                whole = "last-checkpoint" if self._strategy == HubStrategy.CHECKPOINT else checkpoint.name
                self._upload(checkpoint, f"{message}, checkpoint", path_in_repo=whole, delete_patterns="*")
        except _FAILURES as error:
            logger.warning(
                "%s could not be pushed to %s: %s; training goes on", checkpoint, self.repository, _why(error)
            )

    def push_trained(self, directory: Path) -> None:
        """Push everything of the trained directory but its checkpoints.

        Raises:
            UserError: the push failed; the sentence says how to do it by hand.
        """
        try:
            self._upload(directory, "End of training", ignore_patterns=_OTHERS)
        except _FAILURES as error:
            by_hand = f"hf upload {self.repository} {directory} . --exclude '{PREFIX_CHECKPOINT_DIR}-*'"
            if self._revision is not None:
                by_hand += f" --revision {self._revision}"
            raise UserError(
                f"the trained retriever is in {directory}, but could not be pushed to {self.repository}: "
                f"{_why(error)}; push it by hand: {by_hand}"
            ) from error
        logger.info("the trained retriever is at %s/%s", self._api.endpoint, self.repository)

    def _upload(self, directory: Path, message: str, **settings: Any) -> None:
        self._api.upload_folder(
            repo_id=self.repository,
            folder_path=directory,
            commit_message=message,
            revision=self._revision,
            **settings,
        )


def _why(error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository that you may see; {_LOG_IN}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        refusal = f"the hub says {status}, {error.server_message or reason(error)}"
        return f"{refusal}; {_LOG_IN} of an account that may write it" if status in (401, 403) else refusal
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, _HTTPError):
        return f"the hub cannot be reached: {reason(error)}"
    return reason(error)
