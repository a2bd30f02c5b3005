"""The flags of ``fastdense.jax_train``: the torch driver's, and what is refused with its reason."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from packaging.version import Version

from fastdense.command import run
from fastdense.errors import UserError
from fastdense.jax.arguments import JaxTrainingArguments
from fastdense.jax.encode_run import JaxEncoderArguments
from fastdense.jax_train import main
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.flag_checks import _REFUSED as COMMON_REFUSED
from fastdense.training.parser import parse_arguments
from fastdense.training.run_record import given_flags

GOOD = "--model_name_or_path m --output_dir o --do_train --train_dir rows".split()


def parse(*flags: str) -> JaxTrainingArguments:
    kinds = (ModelArguments, DataArguments, ContrastiveArguments, JaxTrainingArguments)
    return parse_arguments("fastdense.jax_train", "", kinds, [*GOOD, *flags])[-1]


def test_bf16_is_a_dtype() -> None:
    assert parse().dtype == "float32"
    assert parse("--bf16").dtype == parse("--dtype", "bfloat16").dtype == "bfloat16"


def test_a_repetition_is_given_what_this_run_was_given() -> None:
    assert given_flags(parse("--bf16")) == {"output_dir": "o", "do_train": True, "bf16": True}


def test_a_batch_is_for_all_devices() -> None:
    assert parse("--per_device_train_batch_size", "3").train_batch_size == 24


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--fp16", "--fp16 is refused: TPUs have no float16: use --bf16"),
        ("--dtype float16", "--dtype: invalid choice: 'float16' (choose from 'float32', 'bfloat16')"),
        ("--torch_compile", "--torch_compile is refused: the step is always compiled"),
        ("--fsdp full_shard", "--fsdp is refused: rows are divided over all devices"),
        ("--ddp_backend gloo", "--ddp_backend is refused"),
        ("--ddp_find_unused_parameters true", "--ddp_find_unused_parameters is refused"),
        ("--tf32 true", "--tf32 is refused: set the environment variable JAX_DEFAULT_MATMUL_PRECISION"),
        ("--optim adafactor", "--optim adafactor is refused: with JAX it can be one of adamw_torch"),
        ("--optim_args rank=1", "--optim_args is refused"),
        ("--logging_nan_inf_filter true", "--logging_nan_inf_filter is refused"),
        ("--full_determinism", "--full_determinism is refused"),
        ("--gradient_checkpointing", "--gradient_checkpointing is refused: use --grad_cache"),
        ("--auto_find_batch_size", "--auto_find_batch_size is refused"),
        ("--learning_rat 1", "unknown flag --learning_rat: did you mean --learning_rate?"),
        ("--temperature 0", "--temperature must be a positive number"),
        ("--save_steps 0", "--save_steps must be more than 0"),
        ("--jax_process_id 1", "--jax_num_processes and --jax_process_id need --jax_coordinator_address"),
    ],
)
def test_what_cannot_work_is_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*flags.split())


def test_sharding_that_accelerate_asks_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP of accelerate .* is refused: rows are divided over all devices"):
        parse()


@pytest.mark.parametrize("flags", [{"fp16": True}, {"attn_implementation": "sdpa"}])
def test_encoding_refuses_what_is_pytorchs(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(flags))} is refused"):
        JaxEncoderArguments(model_name_or_path="m", **flags)


def answer(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of a command that ends with exit status 2."""
    with pytest.raises(SystemExit) as end:
        run(lambda: main(flags))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_jax_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert answer(GOOD, capsys).startswith('error: jax is not installed: pip install "fastdense[jax]"')


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--attn_implementation sdpa", "--attn_implementation is refused"),
        ("--grad_cache --gc_tokens_per_chunk 9", "--gc_tokens_per_chunk is refused: chunks of a compiled step"),
        ("--dry_run", "--dry_run is refused: the plan is that of fastdense.train"),
        ("--per_device_train_batch_size 7", "has 48 rows, fewer than one batch of 56"),
        ("--p_max_len 4000", "--p_max_len is 4000, but the model has only 160 positions"),
        ("--adam_beta1 2", "--optim adamw_torch_fused cannot be used: Invalid beta parameter"),
    ],
)
def test_mistakes_are_found_before_the_first_step(
    flags: str,
    message: str,
    tmp_path: Path,
    tiny_bert_dir: Path,
    tiny_rows: list[dict[str, Any]],
    write_jsonl: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", tiny_rows)
    good = f"--model_name_or_path {tiny_bert_dir} --output_dir {tmp_path / 'out'} --do_train --train_dir {rows}"
    assert message in answer([*good.split(), *flags.split()], capsys)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matryoshka_dims", [8]),
        ("false_negative_margin", 0.0),
        ("false_negative_relative_margin", 0.1),
        ("distil_temperature", 1.0),
        ("guide_model", "m"),
    ],
)
def test_objectives_of_the_torch_driver_are_refused_by_name(name: str, value: Any) -> None:
    from fastdense.jax.run import make_step

    with pytest.raises(UserError, match=f"--{name} is refused: .*fastdense.train"):
        make_step(ContrastiveArguments(**{name: value}), None)  # type: ignore[arg-type]


# What JAX's run does with each. Loop, log, saving and data are the torch driver's; the rest is the step's.
HONOURED = {
    "loop": "output_dir per_device_train_batch_size num_train_epochs max_steps gradient_accumulation_steps do_train "
    "do_eval seed data_seed use_cpu resume_from_checkpoint overwrite_output_dir ignore_data_skip "
    "restore_callback_states_from_checkpoint local_rank ddp_timeout accelerator_config skip_memory_metrics",
    "optimizer": "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps warmup_ratio optim weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm",
    "step": "bf16 dtype label_smoothing_factor",
    "log": "logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica "
    "disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id "
    "include_num_input_tokens_seen",
    "evaluation": "eval_dir eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size "
    "load_best_model_at_end metric_for_best_model greater_is_better",
    "saving": "save_only_model save_strategy save_steps save_total_limit push_to_hub hub_token hub_private_repo "
    "hub_model_id hub_strategy hub_revision",
    "data": "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
    "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy",
    "processes": "jax_coordinator_address jax_num_processes jax_process_id",
}
LOOKED_THROUGH = "5.24"  # the newest transformers whose flags these are


def test_every_flag_is_honoured_or_refused() -> None:
    known = set(" ".join(HONOURED.values()).split()) | set(COMMON_REFUSED) | set(JaxTrainingArguments._refused)
    unknown = {field.name for field in dataclasses.fields(JaxTrainingArguments)} - known
    if Version(transformers.__version__).release[:2] > Version(LOOKED_THROUGH).release:
        pytest.skip(f"nobody has looked at transformers {transformers.__version__}'s flags yet: {sorted(unknown)}")
    assert not unknown


def test_a_flag_is_not_both_honoured_and_refused() -> None:
    names = " ".join(HONOURED.values()).split()
    assert len(names) == len(set(names))
    assert not set(names) & (set(COMMON_REFUSED) | set(JaxTrainingArguments._refused))


def test_every_flag_of_the_torch_driver_is_known_here() -> None:
    torchs = {field.name for field in dataclasses.fields(RetrieverTrainingArguments)}
    assert torchs <= {field.name for field in dataclasses.fields(JaxTrainingArguments)}
