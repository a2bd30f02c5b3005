"""The documented flags, their defaults, and what is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdense.errors import UserError
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.assemble import make_step
from fastdense.training.parser import parse_arguments

# Name, default, and another value, as Tevatron v1 documents them.
DOCUMENTED: list[tuple[str, Any, str]] = [
    ("tokenizer_name", None, "x"),
    ("config_name", None, "x"),
    ("cache_dir", None, "x"),
    ("untie_encoder", False, "true"),
    ("add_pooler", False, "true"),
    ("projection_in_dim", 768, "5"),
    ("projection_out_dim", 768, "5"),
    ("dataset_name", ["json"], "['org/name']"),
    ("dataset_proc_num", 12, "5"),
    ("train_n_passages", 8, "5"),
    ("passage_field_separator", " ", "sep_token"),
    ("q_max_len", 32, "5"),
    ("p_max_len", 128, "5"),
    ("negatives_x_device", False, "true"),
    ("grad_cache", False, "true"),
    ("gc_q_chunk_size", 4, "5"),
    ("gc_p_chunk_size", 32, "5"),
    ("positive_passage_no_shuffle", False, "true"),
    ("negative_passage_no_shuffle", False, "true"),
    ("data_cache_dir", None, "x"),
    ("warmup_ratio", 0.1, "0.2"),
    ("overwrite_output_dir", False, "true"),
    ("temperature", 1.0, "0.5"),
    ("pooling", None, "mean"),
    ("query_prefix", None, "x"),
    ("passage_prefix", None, "x"),
    ("attn_implementation", None, "eager"),
    ("model_revision", None, "x"),
    ("trust_remote_code", False, "true"),
    ("normalize", None, "true"),
]


def parse(*arguments: str) -> dict[str, Any]:
    kinds = (ModelArguments, DataArguments, ContrastiveArguments, RetrieverTrainingArguments)
    needed = "--model_name_or_path m --output_dir o --do_train --train_dir rows".split()
    parsed = parse_arguments("fastdense.train", "", kinds, [*needed, *arguments])
    return {name: value for instance in parsed for name, value in vars(instance).items()}


def test_documented_defaults() -> None:
    values = parse()
    assert {name: values[name] for name, _, _ in DOCUMENTED} == {name: default for name, default, _ in DOCUMENTED}


@pytest.mark.parametrize(("name", "default", "other"), DOCUMENTED)
def test_documented_flags_can_be_set(name: str, default: Any, other: str) -> None:
    needs = {"projection": ["--add_pooler"], "gc": ["--grad_cache"]}
    with_it = needs.get(name.split("_")[0], [])
    value = parse(f"--{name}", other.strip("[]'"), *with_it)[name]
    assert value != default
    assert str(value).lower() == other


def test_both_spellings_of_negatives_x_device() -> None:
    assert parse("--negative_x_device")["negatives_x_device"]
    assert parse("--negatives_x_device")["negatives_x_device"]


def test_warmup_is_a_tenth_of_all_steps_unless_given() -> None:
    assert RetrieverTrainingArguments(output_dir="o", do_train=True).get_warmup_steps(25) == 3
    assert RetrieverTrainingArguments(output_dir="o", do_train=True, warmup_ratio=0).get_warmup_steps(25) == 0
    assert RetrieverTrainingArguments(output_dir="o", do_train=True, warmup_steps=7).get_warmup_steps(25) == 7


def test_launchers_pass_a_local_rank() -> None:
    assert parse("--local-rank=0")["local_rank"] == 0


def test_an_evaluation_directory_chooses_the_best_by_mrr() -> None:
    values = parse("--eval_dir", "d", "--eval_strategy", "epoch")
    assert (values["metric_for_best_model"], values["greater_is_better"]) == ("mrr@10", True)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(UserError, match="--fp16 needs a GPU"):
        parse("--fp16")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--projection_out_dim 5", "--projection_out_dim is the width of a projection: pass --add_pooler"),
        ("--temperature 0", "--temperature must be a positive number, not 0.0"),
        ("--temperature inf", "--temperature must be a positive number"),
        ("--gc_p_chunk_size 0", "--gc_p_chunk_size must be at least 1"),
        ("--gc_tokens_per_chunk 0 --grad_cache", "--gc_tokens_per_chunk must be auto or an integer of at least 1"),
        ("--gc_tokens_per_chunk 1.5 --grad_cache", "must be auto or an integer of at least 1, not '1.5'"),
        ("--gc_keep_graph_gib -1 --grad_cache", "--gc_keep_graph_gib must be auto or a number of at least 0"),
        ("--gc_keep_graph_gib nan --grad_cache", "--gc_keep_graph_gib must be auto or a number of at least 0"),
        ("--gc_q_chunk_size 4", "--gc_q_chunk_size is for the chunks of --grad_cache: pass that, too, or leave it out"),
        ("--gc_p_chunk_size 2", "--gc_p_chunk_size is for the chunks of --grad_cache"),
        ("--gc_tokens_per_chunk 9", "--gc_tokens_per_chunk is for the chunks of --grad_cache"),
        ("--gc_keep_graph_gib 1", "--gc_keep_graph_gib is for the chunks of --grad_cache"),
        ("--lora_r 4", "--lora_r is for --lora"),
        ("--lora --lora_r 0", "--lora_r must be at least 1"),
        ("--lora --lora_dropout 1", "--lora_dropout must lie in [0, 1)"),
        ("--train_n_passages 0", "--train_n_passages must be at least 1"),
        ("--eval_strategy steps", "--eval_strategy needs a held-out set: pass --eval_dir DIR"),
        ("--do_eval", "--do_eval needs --eval_strategy steps or epoch, and --eval_dir DIR"),
        (
            "--overwrite_output_dir --resume_from_checkpoint Auto",
            "--overwrite_output_dir removes the checkpoints that --resume_from_checkpoint auto looks for: leave one of",
        ),
        ("--auto_find_batch_size", "--auto_find_batch_size is refused"),
        ("--deepspeed d.json", "--deepspeed is refused"),
        ("--warmup_ratio 2", "--warmup_ratio must lie between 0 and 1"),
        ("--per_device_train_batch_size 0", "--per_device_train_batch_size must be at least 1"),
        ("--num_train_epochs 0", "--num_train_epochs must be positive"),
    ],
)
def test_what_cannot_work_is_refused(flags: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        parse(*flags.split())


@pytest.mark.parametrize("flag", ["", " --load_best_model_at_end", " --save_strategy best"])
def test_a_refusal_asks_only_for_what_is_lacking(flag: str) -> None:
    with pytest.raises(UserError, match="^--eval_dir needs --eval_strategy steps or epoch$"):
        parse(*f"--eval_dir d{flag}".split())


@pytest.mark.parametrize("request_", ["false", "another/checkpoint-3"])
def test_an_overwritten_directory_may_take_another_runs_checkpoint(request_: str) -> None:
    assert parse("--overwrite_output_dir", "--resume_from_checkpoint", request_)["overwrite_output_dir"]


@pytest.mark.parametrize("cache", ["", " --grad_cache"], ids=["plain", "grad_cache"])
@pytest.mark.parametrize(
    "flags",
    [
        "--fsdp",
        "--fsdp true",
        "--fsdp full_shard",
        '--fsdp_config {"version":2}',
        "--deepspeed zero3.json",
        '--deepspeed {"zero_optimization":{"stage":3}}',
    ],
)
def test_sharding_is_refused_by_name_before_ranks_meet(flags: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As torchrun starts a rank: whoever waits for the other one here waits forever.
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "::1", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=rf"{flags.split()[0]} is refused: .* start with torchrun \(DDP\)"):
        parse(*(flags + cache).split())


def test_sharding_in_a_configuration_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("fsdp: full_shard\n")
    with pytest.raises(UserError, match="--fsdp is refused"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("variable", "what"),
    [
        ("ACCELERATE_USE_FSDP", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism config"),
    ],
)
def test_sharding_that_accelerate_asks_for_is_refused(
    variable: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=rf"{what} of accelerate \({variable}=true\) is refused: .* torchrun"):
        parse("--grad_cache")
    monkeypatch.setenv(variable, "false")
    parse("--grad_cache")


@pytest.mark.parametrize(
    ("flags", "rows", "tokens"),
    [
        ("", (None, None), 1024),
        ("--gc_q_chunk_size 4 --gc_p_chunk_size 32", (4, 32), 1024),  # the same numbers count when they are given
        ("--gc_p_chunk_size 16 --gc_tokens_per_chunk 500", (None, 16), 500),
        ("--gc_tokens_per_chunk auto --gc_keep_graph_gib auto", (None, None), 1024),
    ],
)
def test_row_limits_count_where_they_are_given(flags: str, rows: tuple[int | None, int | None], tokens: int) -> None:
    kinds = (ContrastiveArguments, RetrieverTrainingArguments)
    fixed = "--output_dir o --do_train --use_cpu --grad_cache".split()
    cache = make_step(*parse_arguments("fastdense.train", "", kinds, [*fixed, *flags.split()])).cache
    assert cache is not None
    assert ((cache.query_rows, cache.passage_rows), cache.max_tokens) == (rows, tokens)


def test_do_train_and_data_are_required() -> None:
    with pytest.raises(UserError, match="--do_train"):
        RetrieverTrainingArguments(output_dir="o")
    with pytest.raises(UserError, match="--train_dir"):
        DataArguments()
