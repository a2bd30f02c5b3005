"""What the flags about the data sets of a run cannot mean, seen from the flags alone."""

from typing import TYPE_CHECKING

from fastdense.data.hub import HUB_PREFIX
from fastdense.errors import UserError

if TYPE_CHECKING:
    from fastdense.training.arguments import DataArguments


def check_sources(flags: "DataArguments") -> None:
    """Raise UserError for what does not go with the number of data sets, or names one of them twice."""
    flag, names = ("train_dir", flags.train_dir) if flags.train_dir else ("dataset_name", flags.dataset_name)
    if flags.train_dir and len(flags.dataset_name) > 1:
        raise UserError(
            f"--dataset_name {' '.join(flags.dataset_name)} beside --train_dir stands for a row format, of which there "
            f"is one: to train on data sets of the hub as well, add them to --train_dir as {HUB_PREFIX}org/name"
        )
    if flags.batch_sampling is not None and len(names) < 2:
        raise UserError(f"--batch_sampling is for several data sets: pass --{flag} A B, or leave it out")
    for name in ("train_weights", "source_query_prefix", "source_passage_prefix"):
        given = getattr(flags, name)
        if given and len(given) != len(names):
            raise UserError(f"--{name} has {len(given)} values for {len(names)} --{flag}; give one for each")
    if flags.train_weights and not all(0 < weight < float("inf") for weight in flags.train_weights):
        raise UserError(f"--train_weights must be positive numbers, not {min(flags.train_weights)}")
    if len(set(names)) < len(names):
        raise UserError(f"--{flag} names a data set twice; raise its --train_weights instead")


def check_streaming(flags: "DataArguments") -> None:
    """Raise UserError for what cannot be streamed."""
    if not flags.streaming:
        if flags.streaming_buffer is not None:
            raise UserError("--streaming_buffer is for --streaming: pass that, too, or leave it out")
        return
    if flags.train_dir:
        raise UserError(
            "--streaming is for --dataset_name: the files of --train_dir are on the disk, and read by mapping them "
            "into memory, whatever their size; leave it out"
        )
    if len(flags.dataset_name) > 1:
        raise UserError("--streaming takes one data set: rows of several cannot be drawn by weight from streams")
    if flags.streaming_buffer is not None and flags.streaming_buffer < 1:
        raise UserError(f"--streaming_buffer must be at least 1, not {flags.streaming_buffer}")
