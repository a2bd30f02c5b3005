"""Flags that people bring along: each is answered with what there is here."""

import pytest

from fastdense.errors import UserError
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.parser import parse_arguments

TRAIN = (ModelArguments, DataArguments, ContrastiveArguments, RetrieverTrainingArguments)


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("train_data", "here it is called --train_dir"),
        ("train_group_size", "here it is called --train_n_passages"),
        ("query_max_len", "here it is called --q_max_len"),
        ("passage_max_len", "here it is called --p_max_len"),
        ("negatives_cross_device", "here it is called --negatives_x_device"),
        ("sentence_pooling_method", "here it is called --pooling"),
        ("normalize_embeddings", "here it is called --normalize"),
        ("query_instruction_for_retrieval", "here it is called --query_prefix"),
        ("sub_batch_size", "use --grad_cache, which keeps the negatives of the whole batch"),
        ("append_eos_token", "the tokenizer must add the token itself"),
        ("range_for_sampling", "--range_min and --range_max of python -m fastdense.mine"),
    ],
)
def test_the_flags_of_flagembedding_and_tevatron(flag: str, advice: str) -> None:
    """docs/migrating.md has them in its tables."""
    with pytest.raises(UserError, match=f"^unknown flag --{flag}: .*{advice}"):
        parse_arguments("fastdense.train", "", TRAIN, ["--model_name_or_path", "m", f"--{flag}", "1"])


def test_the_number_of_mined_negatives() -> None:
    from fastdense.mine import main

    with pytest.raises(UserError, match="here it is called --num_negatives"):
        main("--query_reps q --passage_reps p --corpus c --save_rows_to r --negative_number 15".split())
