"""Flags that only the libraries understand, tried on nothing before any model or data set is loaded."""

from difflib import get_close_matches
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from fastdense.errors import UserError
from fastdense.modeling.reason import reason

_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_libraries(args: TrainingArguments) -> None:
    """Raise UserError if the libraries would refuse the optimizer, schedule, loader, compiler or log that is asked for.

    They do so themselves, but as late as in the first step, after hours of tokenizing.
    """
    _check_reporting(args.report_to)
    _check_compiler(args)
    _check_optimizer(args)
    _check_schedule(args)
    _check_loader(args)


def _check_reporting(report_to: list[str]) -> None:
    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            close = get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            advice = f"did you mean {close[0]}?" if close else f"it can be {', '.join(INTEGRATION_TO_CALLBACK)} or none"
            raise UserError(f"--report_to {name} is unknown: {advice}")
        if name not in get_available_reporting_integrations():
            raise UserError(f"--report_to {name}: its package is not installed; pip install {name}, or leave it out")


def _check_compiler(args: TrainingArguments) -> None:
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    if backend is not None and backend.upper() not in DynamoBackend.__members__:
        known = ", ".join(name.lower() for name in DynamoBackend.__members__)
        raise UserError(f"--torch_compile_backend must be one of {known}, not {backend!r}")
    if mode is not None and mode not in _COMPILE_MODES:
        raise UserError(f"--torch_compile_mode must be one of {', '.join(_COMPILE_MODES)}, not {mode!r}")


def _check_optimizer(args: TrainingArguments) -> None:
    if args.optim_target_modules:
        return  # galore and apollo look at the model
    what = f"--optim {args.optim.value}" + (f" with --optim_args {args.optim_args}" if args.optim_args else "")
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        kind([nn.Parameter(torch.zeros(1, device=args.device))], **settings)
    except Exception as error:  # from a missing package to a number out of range
        raise UserError(f"{what} cannot be used: {reason(error)}") from error


def _check_schedule(args: TrainingArguments) -> None:
    settings: Any = args.lr_scheduler_kwargs or None
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 10, settings)
    except (ValueError, TypeError) as error:
        kind = args.lr_scheduler_type.value
        raise UserError(
            f"--lr_scheduler_type {kind} does not work with --lr_scheduler_kwargs {settings or '{}'}: {reason(error)}"
        ) from error


def _check_loader(args: TrainingArguments) -> None:
    try:
        DataLoader(
            [0],  # type: ignore[arg-type]
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
        )
    except ValueError as error:
        raise UserError(f"--dataloader_... flags do not go together: {reason(error)}") from error
