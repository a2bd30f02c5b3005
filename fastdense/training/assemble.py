"""From arguments to the parts of a run: model, rows and step."""

import logging
from typing import Any

from torch.utils.data import Dataset

from fastdense.data.collation import Collator
from fastdense.data.hub import HUB_PREFIX
from fastdense.data.source_mix import Share, SourceMix
from fastdense.data.sources import LOCAL_FILES, find_stream
from fastdense.data.streaming import PassageChoice, StreamedSet, StreamOrder
from fastdense.data.tokenization import TextRules
from fastdense.data.training_rows import load_training_rows
from fastdense.data.training_set import TrainingSet
from fastdense.errors import UserError
from fastdense.grad_cache import GraphBudget
from fastdense.grad_cache.memory import available_bytes
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.load import load_retriever
from fastdense.modeling.lora import LoraSettings, add_lora
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval.encode import check_fits
from fastdense.training.arguments import (
    ContrastiveArguments,
    DataArguments,
    ModelArguments,
    RetrieverTrainingArguments,
)
from fastdense.training.chunk_flags import AUTO, NotGiven
from fastdense.training.cpu import settle_on_cpu
from fastdense.training.distinct import DescribingCollator
from fastdense.training.evaluation import text_tokenizers
from fastdense.training.objective import make_distillation, make_filter, make_prefixes
from fastdense.training.step import CacheSettings, ContrastiveStep

logger = logging.getLogger(__name__)

_TOKENS_PER_CHUNK = 4096  # v1's default chunk: 32 passages of 128 tokens
_TOKENS_PER_CHUNK_ON_A_CPU = 1024  # a layer's activations stay in the caches, and a chunk's lengths differ little
_STREAMED_ROWS = 10_000
_MEMORY_A_CHUNK = 20 * 2**30


def load_model(
    model: ModelArguments, data: DataArguments, args: RetrieverTrainingArguments
) -> tuple[Retriever, Any, RetrieverSettings]:
    """The retriever, ready for the device that it is trained on, its tokenizer, and the settings saved with it."""
    loaded = read_model(model, data)
    if args.device.type == "cpu":
        settle_on_cpu(loaded[0], own_attention=model.attn_implementation is None, own_dropout=not args.torch_compile)
    return loaded


def read_model(model: ModelArguments, data: DataArguments) -> tuple[Retriever, Any, RetrieverSettings]:
    """The retriever as its directory and the flags say, its tokenizer, and the settings that are saved with it."""
    name, source = model.model_name_or_path, {"cache_dir": model.cache_dir, "revision": model.model_revision}
    retriever = load_retriever(
        name,
        untie_encoder=model.untie_encoder,
        add_pooler=model.add_pooler,
        projection_in_dim=model.projection_in_dim,
        projection_out_dim=model.projection_out_dim,
        normalize=model.normalize,
        pooling=model.pooling,
        config_name=model.config_name,
        trust_remote_code=model.trust_remote_code,
        attn_implementation=model.attn_implementation,
        **source,
    )
    tokenizer = load_tokenizer(
        name, tokenizer_name=model.tokenizer_name, trust_remote_code=model.trust_remote_code, **source
    )
    found = read_settings(name, **source) or RetrieverSettings(base_model=name)
    prompts = (found.query_prefix, found.passage_prefix)
    settings = RetrieverSettings(
        query_prefix=prompts[0] if data.query_prefix is None else data.query_prefix,
        passage_prefix=prompts[1] if data.passage_prefix is None else data.passage_prefix,
        q_max_len=data.q_max_len,
        p_max_len=data.p_max_len,
        passage_field_separator=data.passage_field_separator,
        base_model=found.base_model or name,
    )
    for encoder, tokenize in zip(
        (retriever.query_encoder, retriever.passage_encoder), text_tokenizers(tokenizer, settings), strict=True
    ):
        check_fits(encoder, tokenize)
    if model.lora:
        add_lora(retriever, LoraSettings(model.lora_r, model.lora_alpha, model.lora_dropout, model.lora_target_modules))
    return retriever, tokenizer, settings.describing(retriever)


def check_lora(model: ModelArguments, args: RetrieverTrainingArguments) -> None:
    """Raise UserError for a way of recomputing activations that finds no gradients behind frozen embeddings."""
    if model.lora and args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise UserError("--gradient_checkpointing_kwargs: use_reentrant does not work with --lora: leave it out")


def load_training_set(
    data: DataArguments,
    model: ModelArguments,
    contrastive: ContrastiveArguments,
    args: RetrieverTrainingArguments,
    tokenizer: Any,
    settings: RetrieverSettings,
) -> tuple[Dataset, Collator]:
    """The rows as examples, and the collator that makes batches of them. One process tokenizes, the others wait."""
    _warn_of_names(data, args)
    collator = DescribingCollator(tokenizer, q_max_len=data.q_max_len, p_max_len=data.p_max_len)
    if data.streaming:
        return _load_stream(data, model, contrastive, args, tokenizer, settings), collator
    with args.main_process_first(desc="tokenizing the training rows"):
        sets = [
            _load_source(number, data, model, contrastive, args, tokenizer, settings)
            for number in range(data.n_sources)
        ]
    rows = [len(each) for each in sets]
    _check_rows(sum(rows), data, args)
    if len(sets) == 1:
        return sets[0], collator
    shares = [Share(*share) for share in zip(data.source_names(), rows, data.train_weights or rows, strict=True)]
    return _mix(sets, shares, data, args), collator


def _warn_of_names(data: DataArguments, args: RetrieverTrainingArguments) -> None:
    if data.train_dir and data.dataset_name != [LOCAL_FILES] and args.process_index == 0:
        logger.warning(
            "--dataset_name %s is not trained on: beside --train_dir it stands for a row format, which is detected; to "
            "train on both, add %s%s to --train_dir",
            data.dataset_name[0],
            HUB_PREFIX,
            data.dataset_name[0],
        )


def _load_stream(
    data: DataArguments,
    model: ModelArguments,
    contrastive: ContrastiveArguments,
    args: RetrieverTrainingArguments,
    tokenizer: Any,
    settings: RetrieverSettings,
) -> StreamedSet:
    """The examples of a data set of the hub that is read while training."""
    if args.max_steps < 1:
        raise UserError("--streaming needs --max_steps: how many rows a stream has is not known before its end")
    name, stream = find_stream(data.dataset_name[0], data.data_cache_dir or model.cache_dir)
    rules = TextRules.of(
        tokenizer,
        q_max_len=data.q_max_len,
        p_max_len=data.p_max_len,
        separator=data.passage_field_separator,
        **_prefixes(0, data, settings),
    )
    order = StreamOrder(
        _order_seed(args),
        0 if args.train_sampling_strategy == "sequential" else data.streaming_buffer or _STREAMED_ROWS,
        rank=args.process_index,
        world=args.world_size,
    )
    return StreamedSet(stream, name, tokenizer, rules, _passage_choice(data, contrastive, args), order)


def _load_source(
    number: int,
    data: DataArguments,
    model: ModelArguments,
    contrastive: ContrastiveArguments,
    args: RetrieverTrainingArguments,
    tokenizer: Any,
    settings: RetrieverSettings,
) -> TrainingSet:
    """The examples of one of the data sets, with its own prefixes if it has them."""
    rows = load_training_rows(
        tokenizer,
        train_dir=data.train_dir[number] if data.train_dir else None,
        dataset_name=LOCAL_FILES if data.train_dir else data.dataset_name[number],
        q_max_len=data.q_max_len,
        p_max_len=data.p_max_len,
        passage_field_separator=data.passage_field_separator,
        **_prefixes(number, data, settings),
        num_proc=data.dataset_proc_num,
        cache_dir=data.data_cache_dir or model.cache_dir,
    )
    return TrainingSet(rows, **vars(_passage_choice(data, contrastive, args)))


def _prefixes(number: int, data: DataArguments, settings: RetrieverSettings) -> dict[str, str]:
    """What stands before the texts of one of the data sets."""
    query, passage = data.source_query_prefix, data.source_passage_prefix
    return {
        "query_prefix": query[number] if query else settings.query_prefix,
        "passage_prefix": passage[number] if passage else settings.passage_prefix,
    }


def _passage_choice(
    data: DataArguments, contrastive: ContrastiveArguments, args: RetrieverTrainingArguments
) -> PassageChoice:
    return PassageChoice(
        data.train_n_passages,
        args.seed,
        positive_no_shuffle=data.positive_passage_no_shuffle,
        negative_no_shuffle=data.negative_passage_no_shuffle,
        missing_negatives=data.missing_negatives,
        teacher_scores=contrastive.distil_temperature is not None,
    )


def _order_seed(args: RetrieverTrainingArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def _mix(
    sets: list[TrainingSet], shares: list[Share], data: DataArguments, args: RetrieverTrainingArguments
) -> SourceMix:
    if args.train_sampling_strategy != "random":
        raise UserError("--train_sampling_strategy sequential is for one data set: batches take several in turns")
    if not args.dataloader_drop_last:
        raise UserError("--dataloader_drop_last false is for one data set: batches of several are always full")
    mix = SourceMix(sets, shares, data.batch_sampling or "one_source", _order_seed(args))
    mix.sampler(args.train_batch_size * args.world_size)  # says now what cannot work
    return mix


def _check_rows(rows: int, data: DataArguments, args: RetrieverTrainingArguments) -> None:
    batch = args.train_batch_size * args.world_size
    devices = batch // args.per_device_train_batch_size
    if args.dataloader_drop_last and rows < batch:
        raise UserError(
            f"{' and '.join(data.source_names())} has {rows} rows, fewer than one batch of {batch} "
            f"(--per_device_train_batch_size {args.per_device_train_batch_size}, devices: {devices}); "
            "lower it, or pass --dataloader_drop_last false"
        )


def make_step(contrastive: ContrastiveArguments, args: RetrieverTrainingArguments) -> ContrastiveStep:
    """The step that ``--temperature``, ``--grad_cache`` and ``--negatives_x_device`` ask for."""
    if contrastive.negatives_x_device and args.parallel_mode.value != "distributed":
        raise UserError(
            "--negatives_x_device shares passages between processes, and there is one: start with "
            "torchrun --nproc_per_node N -m fastdense.train, or leave it out"
        )
    if contrastive.grad_cache and args.ddp_static_graph:
        raise UserError("--ddp_static_graph does not work with --grad_cache, whose chunks differ from step to step")
    return ContrastiveStep(
        scale=1 / contrastive.temperature,
        label_smoothing=args.label_smoothing_factor,
        mask_duplicates=contrastive.mask_duplicates,
        prefixes=make_prefixes(contrastive),
        false_negatives=make_filter(contrastive),
        distillation=make_distillation(contrastive),
        cache=_cache_settings(contrastive, args.device.type) if contrastive.grad_cache else None,
        negatives_x_device=contrastive.negatives_x_device,
    )


def _cache_settings(contrastive: ContrastiveArguments, device_type: str) -> CacheSettings:
    tokens, gib = contrastive.gc_tokens_per_chunk, contrastive.gc_keep_graph_gib
    query_rows, passage_rows = (
        None if isinstance(rows, NotGiven) else rows
        for rows in (contrastive.gc_q_chunk_size, contrastive.gc_p_chunk_size)
    )
    return CacheSettings(
        max_tokens=_tokens_per_chunk(device_type) if tokens == AUTO else int(tokens),
        query_rows=query_rows,
        passage_rows=passage_rows,
        graphs=GraphBudget(None if gib == AUTO else float(gib)),
    )


def _tokens_per_chunk(device_type: str) -> int:
    """Enough for a CPU's matrix products; a GPU needs more of them to be busy, if it has the memory."""
    if device_type == "cpu":
        return _TOKENS_PER_CHUNK_ON_A_CPU
    memory = available_bytes(device_type) or 0
    return _TOKENS_PER_CHUNK * min(4, max(1, memory // _MEMORY_A_CHUNK))
