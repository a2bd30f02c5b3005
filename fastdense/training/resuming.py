"""Flags that change when a run is resumed: said, and recorded as what happens."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from fastdense.training.run_record import RUN

logger = logging.getLogger(__name__)

# How a run is logged, saved, shared and fed says nothing about what it trains.
_NO_MATTER = (
    *("output_dir", "run_name", "report_to", "disable_tqdm", "logging_", "log_level", "save_", "push_to_hub", "hub_"),
    *("dataset_proc_num", "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("dataloader_pin_memory", "cache_dir", "data_cache_dir"),
)


def flags_of_resumed(
    checkpoint: str, flags: dict[str, Any], defaults: dict[str, Any], kept: Collection[str], *, tell: bool
) -> dict[str, Any]:
    """The flags that a resumed run has in truth; warn of those that differ from the ones its checkpoint was made with.

    Args:
        checkpoint: its directory, with the record of the run that made it; without one all flags are believed.
        flags: those that were given now, without defaults.
        defaults: of all flags.
        kept: flags whose value comes from the checkpoint.
        tell: whether this is the process that warns.
    """
    former = _recorded(Path(checkpoint))
    if former is None:
        return flags
    given = _plain(flags)
    changed = [name for name in {**former, **given} if former.get(name) != given.get(name)]
    changed = [name for name in changed if name in defaults and not name.startswith(_NO_MATTER)]
    if changed and tell:
        told = (
            f"--{name} {_shown(name, former, defaults)} -> {_shown(name, flags, defaults)}"
            + (" (the checkpoint's value goes on)" if name in kept else "")
            for name in changed
        )
        logger.warning("this run goes on with other flags than %s was made with: %s", checkpoint, ", ".join(told))
    going_on = {name: former.get(name) for name in changed if name in kept}
    return {name: value for name, value in {**flags, **going_on}.items() if value is not None}


def _recorded(checkpoint: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load((checkpoint / RUN).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # of an older version, or changed by hand: it only warns
        return None
    return content if isinstance(content, dict) else None


def _plain(flags: dict[str, Any]) -> dict[str, Any]:
    """As a record gives them back."""
    return dict(yaml.safe_load(yaml.safe_dump(flags)) or {})


def _shown(name: str, flags: dict[str, Any], defaults: dict[str, Any]) -> str:
    value = flags.get(name, defaults[name])
    value = getattr(value, "value", value)  # of an enumeration
    if value is None or value == []:
        return "(none)"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
