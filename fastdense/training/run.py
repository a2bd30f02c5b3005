"""A training run: model and rows -> trainer -> the trained directory."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import set_seed

from fastdense.command import show_log
from fastdense.environment import emulates_bf16
from fastdense.files import atomic_file
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.model_card import Provenance, model_card
from fastdense.modeling.settings import RetrieverSettings
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.assemble import check_lora, load_model, load_training_set, make_step
from fastdense.training.checkpoints import find_checkpoint, is_finished, prepare_output_dir
from fastdense.training.dry_run import describe_run
from fastdense.training.evaluation import load_held_out
from fastdense.training.guide import with_guide
from fastdense.training.hub_push import HubPush
from fastdense.training.library_checks import check_libraries
from fastdense.training.objective import with_prefixes
from fastdense.training.ranks import end_together
from fastdense.training.resuming import flags_of_resumed
from fastdense.training.run_record import RunRecord, defaults, given_flags, provenance
from fastdense.training.trainer import RetrieverTrainer

logger = logging.getLogger(__name__)


def train(
    model: ModelArguments,
    data: DataArguments,
    contrastive: ContrastiveArguments,
    args: RetrieverTrainingArguments,
    *,
    load_model: Callable[..., tuple[Retriever, Any, RetrieverSettings]] = load_model,
    make_step: Callable[..., Any] = make_step,
    trainer_class: type[RetrieverTrainer] = RetrieverTrainer,
) -> None:
    """Train as the arguments say and leave the retriever in ``args.output_dir``.

    The later arguments are what another driver does otherwise: from the flags of the model and of the data to the
    model, from those of the loss and of the training to the step, and what runs that step.
    """
    show_log(args.process_index)
    check_lora(model, args)
    check_libraries(args)
    _warn_of_emulation(args)
    set_seed(args.seed)
    if args.dry_run:
        _print_plan(model, data, contrastive, args)
        return
    checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
    prepare_output_dir(args, resuming=checkpoint is not None)
    record = RunRecord(_flags(checkpoint, (model, data, contrastive, args), trainer_class.kept_on_resume))
    hub = HubPush(args) if args.push_to_hub and args.process_index == 0 else None
    step, retriever, tokenizer, settings = _assemble(model, data, contrastive, args, load_model, make_step)
    held_out = load_held_out(args, tokenizer, settings, model.cache_dir)
    rows, collator = load_training_set(data, model, contrastive, args, tokenizer, settings)
    trainer = trainer_class(
        retriever,
        args,
        step,
        train_dataset=rows,
        collator=collator,
        tokenizer=tokenizer,
        settings=settings,
        held_out=held_out,
    )
    for callback in filter(None, (record, hub)):
        trainer.add_callback(callback)
    nothing_left = trainer.train(resume_from_checkpoint=checkpoint) is None
    if nothing_left:
        logger.info("nothing is left to train: %s is at step %d", checkpoint, trainer.state.global_step)
    if nothing_left and is_finished(args.output_dir, trainer.state.global_step):
        logger.info("the trained retriever in %s stays as it is", args.output_dir)
    else:
        if nothing_left:
            record.complete(args, trainer.state, trainer.control)
        _leave(trainer, provenance(data, args, trainer.state, hub.repository if hub else None))
    end_together()
    if hub is not None:  # after it: a push may take longer than ranks wait for one another
        hub.push_trained(Path(args.output_dir))


def _assemble(
    model: ModelArguments,
    data: DataArguments,
    contrastive: ContrastiveArguments,
    args: RetrieverTrainingArguments,
    load_model: Callable[..., tuple[Retriever, Any, RetrieverSettings]],
    make_step: Callable[..., Any],
) -> tuple[Any, Retriever, Any, RetrieverSettings]:
    """The step, the retriever, its tokenizer and its settings."""
    step = make_step(contrastive, args)
    retriever, tokenizer, settings = load_model(model, data, args)
    step = with_guide(step, contrastive, model, args, tokenizer, settings)
    return step, retriever, tokenizer, with_prefixes(contrastive, settings, retriever.query_encoder.dimension)


def _warn_of_emulation(args: RetrieverTrainingArguments) -> None:
    if args.bf16 and args.device.type == "cpu" and args.process_index == 0 and emulates_bf16():
        logger.warning(
            "--bf16 is emulated on this CPU, which has neither avx512_bf16 nor amx_bf16: it saves memory and costs time"
        )


def _flags(
    checkpoint: str | None, arguments: tuple[ModelArguments, DataArguments, ContrastiveArguments, Any], kept: Any
) -> dict[str, Any]:
    """The flags to record."""
    flags = given_flags(*arguments)
    if checkpoint is None:
        return flags
    return flags_of_resumed(checkpoint, flags, defaults(*arguments), kept, tell=arguments[-1].process_index == 0)


def _leave(trainer: RetrieverTrainer, origin: Provenance) -> None:
    """Save the model, a card that says where it comes from, and the run's state, by which all of it is there."""
    trainer.save_model()
    if trainer.args.process_index == 0:
        card = model_card(trainer.settings, trainer.model.query_encoder.dimension, origin)
        with atomic_file(Path(trainer.args.output_dir, "README.md")) as path:
            path.write_text(card, encoding="utf-8")
    trainer.save_state()
    logger.info("the trained retriever is in %s", trainer.args.output_dir)


def _print_plan(
    model: ModelArguments, data: DataArguments, contrastive: ContrastiveArguments, args: RetrieverTrainingArguments
) -> None:
    step, retriever, tokenizer, settings = _assemble(model, data, contrastive, args, load_model, make_step)
    rows, collator = load_training_set(data, model, contrastive, args, tokenizer, settings)
    if args.process_index == 0:
        print(describe_run(retriever, args, step, rows, collator))
