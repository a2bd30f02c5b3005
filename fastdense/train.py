"""``python -m fastdense.train``: train a dense retriever with PyTorch."""

import logging
from collections.abc import Sequence

from transformers import set_seed

from fastdense.command import run, show_log
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.assemble import load_model, load_training_set, make_step
from fastdense.training.checkpoints import find_checkpoint, prepare_output_dir
from fastdense.training.evaluation import load_held_out
from fastdense.training.parser import parse_arguments
from fastdense.training.trainer import RetrieverTrainer

PROG = "fastdense.train"


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments -> model and rows -> trainer -> the trained directory."""
    model_args, data_args, contrastive_args, args = parse_arguments(
        PROG,
        "Train a dense retriever (bi-encoder) with in-batch negatives.",
        (ModelArguments, DataArguments, ContrastiveArguments, RetrieverTrainingArguments),
        arguments,
    )
    show_log(args.process_index)
    set_seed(args.seed)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    if args.process_index == 0:
        prepare_output_dir(args, resuming=checkpoint is not None)
    step = make_step(contrastive_args, args)
    retriever, tokenizer, settings = load_model(model_args, data_args)
    rows, collator = load_training_set(data_args, model_args, args, tokenizer, settings)
    trainer = RetrieverTrainer(
        retriever,
        args,
        step,
        train_dataset=rows,
        collator=collator,
        tokenizer=tokenizer,
        settings=settings,
        held_out=load_held_out(args, tokenizer, settings),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    logging.getLogger(PROG).info("the trained retriever is in %s", args.output_dir)


if __name__ == "__main__":
    run(main)
