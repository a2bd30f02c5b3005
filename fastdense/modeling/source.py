"""Where a model comes from: a directory, or a repository on the Hugging Face hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fastdense.errors import UserError
from fastdense.modeling.reason import reason


@dataclass(frozen=True)
class ModelSource:
    """A model directory or hub repository whose files are fetched one by one."""

    name: str
    cache_dir: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def is_local(self) -> bool:
        return self.name != "" and Path(self.name).is_dir()

    def file(self, relative: str) -> Path | None:
        """The path of one file on this machine, downloaded if need be; None if the model has no such file."""
        if self.is_local:
            path = Path(self.name, relative)
            return path if path.is_file() else None
        return self._download(relative)

    def json(self, relative: str) -> Any | None:
        """The content of a JSON file, or None if the model has no such file."""
        path = self.file(relative)
        if path is None:
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is no readable JSON ({error}): the model directory is damaged") from error

    def object(self, relative: str) -> dict[str, Any] | None:
        """The content of a JSON file that holds an object, or None if the model has no such file."""
        value = self.json(relative)
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self}/{relative} must hold a JSON object, not {type(value).__name__}")
        return value

    def _download(self, relative: str) -> Path | None:
        try:
            return Path(hf_hub_download(self.name, relative, cache_dir=self.cache_dir, revision=self.revision))
        except LocalEntryNotFoundError as error:
            if constants.HF_HUB_OFFLINE:
                return None  # offline on purpose: what is not in the cache counts as absent
            raise UserError(f"the hub cannot be reached for {relative} of {self}: check the network") from error
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise UserError(f"{self} is a gated model: ask for access on the hub, then run `hf auth login`") from error
        except RepositoryNotFoundError as error:
            raise UserError(f"{self} is neither a directory nor a model on the hub that you may read") from error
        except RevisionNotFoundError as error:
            raise UserError(f"--model_revision {self.revision}: {self} has no such branch, tag or commit") from error
        except HFValidationError as error:
            raise UserError(f"{self} is neither a directory nor a possible name of a model on the hub") from error
        except (HfHubHTTPError, OSError) as error:
            raise UserError(f"cannot fetch {relative} of {self} from the hub: {reason(error)}") from error


def open_source(name: str, cache_dir: str | None = None, revision: str | None = None) -> ModelSource:
    """Check that ``name`` is a directory, or a hub model that can be had.

    Raises:
        UserError: it is a file, a missing directory, a directory with a revision, or a hub model that is unknown or
            out of reach.
    """
    source = ModelSource(str(name), cache_dir, revision)
    if source.is_local:
        if revision is not None:
            raise UserError(f"--model_revision {revision} is for a model on the hub, but {name} is a directory here")
        return source
    if not source.name:
        raise UserError("the name of the model is empty: give a model directory or the name of a model on the hub")
    if Path(name).exists():
        raise UserError(f"{name} is a file: give the model's directory")
    if _looks_like_a_path(str(name)):
        raise UserError(f"there is no directory {name}: give a model directory or the name of a model on the hub")
    if not any(source.file(marker) for marker in ("config.json", "modules.json", "query_model/config.json")):
        raise UserError(
            f"{name} is no directory here, and no model of this name is in the Hugging Face cache or within reach"
            f"{' (HF_HUB_OFFLINE is set)' if constants.HF_HUB_OFFLINE else ''}: check the name, or the network"
        )
    return source


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1
