"""The flags of ``fastdense.jax_train``: the torch driver's, and what is refused with its reason."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from fastdense.command import run
from fastdense.errors import UserError
from fastdense.jax.arguments import JaxTrainingArguments
from fastdense.jax.encode_run import JaxEncoderArguments
from fastdense.jax_train import main
from fastdense.training.arguments import ContrastiveArguments, DataArguments, ModelArguments
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
    ],
)
def test_objectives_of_the_torch_driver_are_refused_by_name(name: str, value: Any) -> None:
    from fastdense.jax.run import make_step

    with pytest.raises(UserError, match=f"--{name} is refused: .*fastdense.train"):
        make_step(ContrastiveArguments(**{name: value}), None)  # type: ignore[arg-type]
