"""What no run could do with the ``TrainingArguments`` it was given, seen from the flags alone."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from fastdense.errors import UserError

MEASURES = ("mrr@10", "ndcg@10", "recall@10", "recall@100")  # what --eval_strategy measures

_SHARDING = (
    "parameters are not sharded, since every model call would need all ranks, which differ in chunks: start with "
    "torchrun (DDP), and save memory with --grad_cache, --gradient_checkpointing or --lora"
)
_MEASURED_OTHERWISE = "a run is measured by searching the corpus of --eval_dir, which knows no batches with labels"
_LIGER = "its kernels replace language-model layers only"
_BY_LENGTH = "rows have a query and passages, not one length; chunks of --grad_cache are planned by length anyway"

# These would be silently without effect or silently wrong here: whatever is not the default is refused with its reason.
_REFUSED = {
    "fsdp": _SHARDING,
    "fsdp_config": _SHARDING,
    "deepspeed": _SHARDING,
    "parallelism_config": _SHARDING,
    "auto_find_batch_size": "a smaller batch has fewer in-batch negatives and another loss: choose the batch size, "
    "and use --grad_cache to fit it into memory",
    "neftune_noise_alpha": "the noise hook only knows language models",
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "nothing is generated, so there is no key-value cache to keep",
    "average_tokens_across_devices": "the loss is a mean over queries, not tokens",
    "debug": "its hooks cannot take the boolean masks of today's encoders",
    "do_predict": "there is no test set here: use python -m fastdense.encode, fastdense.search and fastdense.evaluate",
    "bf16_full_eval": "measuring computes as training does: pass --bf16",
    "fp16_full_eval": "measuring computes as training does: pass --fp16",
    "prediction_loss_only": _MEASURED_OTHERWISE,
    "eval_do_concat_batches": _MEASURED_OTHERWISE,
    "eval_use_gather_object": _MEASURED_OTHERWISE,
    "eval_accumulation_steps": _MEASURED_OTHERWISE,
    "include_for_metrics": _MEASURED_OTHERWISE,
    "batch_eval_metrics": _MEASURED_OTHERWISE,
    "label_names": "the target of a query is its positive passage, and no column of labels",
    "remove_unused_columns": "rows are tokens by now, and have no columns to remove",
    "length_column_name": _BY_LENGTH,
    "enable_jit_checkpoint": "it would leave half a checkpoint behind when it is killed: save often with --save_steps, "
    "and start again with --resume_from_checkpoint auto",
    "save_on_each_node": "all machines write into one --output_dir, which they must share",
    "hub_always_push": "every push is waited for, so that none is left out",
}

# How `accelerate launch` hands over what its flags or its configuration file say.
_SHARDED_BY_ACCELERATE = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
_TRUE = ("1", "true", "yes", "on", "y", "t")

_AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "save_total_limit",
    "ddp_timeout",
)
_NOT_NEGATIVE = ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay")
_POSITIVE = ("logging_steps", "save_steps", "eval_steps")
_SEEDS = ("seed", "data_seed")
_LARGEST_SEED = 2**32 - 1

_NEED_EVALUATION = ("eval_dir", "eval_on_start", "load_best_model_at_end", "metric_for_best_model", "do_eval")
_NEED_HUB = ("hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_revision")
_OBJECTS = (
    "lr_scheduler_kwargs",
    "gradient_checkpointing_kwargs",
    "activation_checkpointing_kwargs",
    "accelerator_config",
)
_CHECKPOINTING = ("use_reentrant", "every_n_layers", "offload")
_NO_SPLITTING = "a query's passages would be separated from it"
_REFUSED_IN_ACCELERATOR = {
    "split_batches": (True, _NO_SPLITTING),
    "dispatch_batches": (True, _NO_SPLITTING),
    "even_batches": (False, "processes with fewer batches than others would leave them waiting"),
}


def check_flags(args: Any, refused: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise UserError for the first flag that cannot be meant; ``args`` are not yet completed by the library.

    ``refused`` are further flags that a driver refuses, and its reasons, which come before those for all drivers.
    """
    reasons = {**_REFUSED, **refused}
    _check_refused(args, reasons)
    _check_launcher(reasons["fsdp"])
    _check_numbers(args)
    _check_evaluation(args)
    _check_hub(args)
    _check_resuming(args)
    for name in _OBJECTS:
        _check_object(args, name)


def _check_refused(args: Any, refused: Mapping[str, str]) -> None:
    defaults = {field.name: default_of(field) for field in dataclasses.fields(args)}
    for name, reason in refused.items():
        value, default = getattr(args, name, None), defaults.get(name)
        if value != default and (value or default):  # the parser makes an empty list of an empty string
            raise UserError(f"--{name} is refused: {reason}")
    if args.train_sampling_strategy not in ("random", "sequential"):
        raise UserError(f"--train_sampling_strategy {args.train_sampling_strategy} is refused: {_BY_LENGTH}")
    if args.include_num_input_tokens_seen not in ("no", False):
        raise UserError("--include_num_input_tokens_seen is refused: queries are counted, by examples_per_second")
    if args.optim_target_modules and not _name(args.optim).startswith(("galore", "apollo")):
        raise UserError("--optim_target_modules is for --optim galore_... and apollo_...: leave it out")
    if args.optim_args and not all("=" in part for part in args.optim_args.split(",")):
        raise UserError(f"--optim_args must be name=value,name=value, not {args.optim_args!r}")
    if "lomo" in _name(args.optim) or _name(args.optim).endswith("layerwise"):
        raise UserError(f"--optim {_name(args.optim)} is refused: it steps before all gradients of a batch are there")


def _check_launcher(reason: str) -> None:
    for name, what in _SHARDED_BY_ACCELERATE.items():
        if os.environ.get(name, "").lower() in _TRUE:
            raise UserError(f"{what} of accelerate ({name}={os.environ[name]}) is refused: {reason}")


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, however it is declared."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _name(value: Any) -> str:
    """The name of an enumeration's member, which may still be a string."""
    return str(getattr(value, "value", value))


def _check_numbers(args: TrainingArguments) -> None:
    for names, least in ((_AT_LEAST_ONE, 1), (_NOT_NEGATIVE, 0)):
        for name in names:
            value = getattr(args, name)
            if value is not None and not least <= value < math.inf:
                raise UserError(f"--{name} must be at least {least}, not {value}")
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be more than 0, not {value}")
    for name in _SEEDS:
        value = getattr(args, name)
        if value is not None and not 0 <= value <= _LARGEST_SEED:
            raise UserError(f"--{name} must lie between 0 and {_LARGEST_SEED}, not {value}")
    if not 0 <= args.label_smoothing_factor < 1:
        raise UserError(f"--label_smoothing_factor must lie in [0, 1), not {args.label_smoothing_factor}")
    if args.max_steps != -1 and args.max_steps < 1:
        raise UserError(f"--max_steps must be at least 1, or -1 to go by --num_train_epochs, not {args.max_steps}")
    if args.max_steps == -1 and not 0 < args.num_train_epochs < math.inf:
        raise UserError(f"--num_train_epochs must be positive, not {args.num_train_epochs}")


def _check_evaluation(args: Any) -> None:
    if _name(args.eval_strategy) != "no":
        if not args.eval_dir:
            raise UserError("--eval_strategy needs a held-out set: pass --eval_dir DIR")
        metric = args.metric_for_best_model
        if metric is not None and metric.removeprefix("eval_") not in MEASURES:
            raise UserError(f"--metric_for_best_model must be one of {', '.join(MEASURES)}, not {metric!r}")
        return
    given = [name for name in _NEED_EVALUATION if getattr(args, name)]
    if _name(args.save_strategy) == "best":
        given.append("save_strategy best")
    if given:
        lacking = "" if args.eval_dir else ", and --eval_dir DIR"
        raise UserError(f"--{given[0]} needs --eval_strategy steps or epoch{lacking}")


def _check_resuming(args: Any) -> None:
    request = str(args.resume_from_checkpoint).lower()
    if args.overwrite_output_dir and request in ("true", "auto"):
        raise UserError(
            f"--overwrite_output_dir removes the checkpoints that --resume_from_checkpoint {request} looks for: leave "
            "one of them out"
        )


def _check_hub(args: Any) -> None:
    defaults = {field.name: default_of(field) for field in dataclasses.fields(args)}
    given = [name for name in _NEED_HUB if getattr(args, name) != defaults[name]]
    if given and not args.push_to_hub:
        raise UserError(f"--{given[0]} is for --push_to_hub: pass that, too, or leave it out")


def _check_object(args: Any, name: str) -> None:
    """``{...}`` on the command line stays a string if it is no JSON, and the library reports it without the flag."""
    value = getattr(args, name, None)
    if not isinstance(value, str) or (name == "accelerator_config" and Path(value).is_file()):
        return
    try:
        if isinstance(json.loads(value), dict):
            return
    except json.JSONDecodeError:
        pass  # the same sentence
    raise UserError(f"--{name} must be a JSON object such as '{{\"name\": 1}}', not {value!r}")


def check_checkpointing(settings: dict[str, Any] | None, processes: int) -> None:
    """Raise UserError for settings of gradient checkpointing that are unknown or would give wrong gradients."""
    for name in settings or {}:
        if name not in _CHECKPOINTING:
            raise UserError(f"--gradient_checkpointing_kwargs: {name!r} is not one of {', '.join(_CHECKPOINTING)}")
    if processes > 1 and (settings or {}).get("use_reentrant"):
        raise UserError(
            "--gradient_checkpointing_kwargs: use_reentrant does not work with several processes, which reduce every "
            "gradient once: leave it out"
        )


def check_accelerator_config(config: Any) -> None:
    """Raise UserError for settings under which batches would be torn apart; ``config`` is accelerate's own object."""
    for name, (value, reason) in _REFUSED_IN_ACCELERATOR.items():
        if getattr(config, name, None) is value:
            raise UserError(f"--accelerator_config: {name} {str(value).lower()} is refused: {reason}")
