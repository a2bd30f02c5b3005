"""Every flag of the training drivers, as dataclasses.

Names and defaults are those that Tevatron v1 documents; what the Hugging Face ``TrainingArguments`` already have is
inherited. Checks that need nothing but the flags themselves stand here; files are checked where they are read.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import torch
from transformers import TrainingArguments

from fastdense.data.sources import LOCAL_FILES
from fastdense.errors import UserError
from fastdense.training.chunk_flags import AUTO, NotGiven, check_chunks
from fastdense.training.data_checks import check_sources, check_streaming
from fastdense.training.flag_checks import check_accelerator_config, check_checkpointing, check_flags
from fastdense.training.input_pipeline import default_workers, machine_share
from fastdense.training.objective import check_objective

# Newer transformers warn about the former name, older ones do not know today's.
_RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

POOLING = Literal["cls", "mean", "last"]
_LORA_DEFAULTS = {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target_modules": None}


def _flag(help: str, **metadata: object) -> dict[str, object]:
    return {"help": help, **metadata}


@dataclass
class ModelArguments:
    """What the encoder is."""

    model_name_or_path: str = field(
        metadata=_flag("Model that initializes the retriever: a name on the Hugging Face hub or a directory.")
    )
    config_name: str | None = field(default=None, metadata=_flag("Config name or path, if not the model's own."))
    tokenizer_name: str | None = field(default=None, metadata=_flag("Tokenizer name or path, if not the model's own."))
    cache_dir: str | None = field(
        default=None, metadata=_flag("Where downloaded models and data are kept (default: the Hugging Face cache).")
    )
    model_revision: str | None = field(
        default=None, metadata=_flag("Branch, tag or commit of the model on the hub (default: its main branch).")
    )
    trust_remote_code: bool = field(
        default=False, metadata=_flag("Run Python code that the model's repository brings along.")
    )
    attn_implementation: str | None = field(
        default=None, metadata=_flag("Attention of the backbone: eager, sdpa, flash_attention_2, flex_attention.")
    )
    untie_encoder: bool = field(
        default=False, metadata=_flag("Train two separate encoders; without it query and passage share one.")
    )
    add_pooler: bool = field(default=False, metadata=_flag("Add a linear projection on top of the pooled output."))
    projection_in_dim: int = field(
        default=768, metadata=_flag("Input width of the projection: the model's hidden size.")
    )
    projection_out_dim: int = field(default=768, metadata=_flag("Output width of the projection."))
    pooling: POOLING | None = field(
        default=None,
        metadata=_flag(
            "Token(s) that stand for a text: cls, mean or last (default: what the model directory says, else cls)."
        ),
    )
    normalize: bool | None = field(
        default=None,
        metadata=_flag(
            "Scale representations to length 1 (default: what the model directory says, else no).",
            nargs="?",
            const=True,
        ),
    )

    lora: bool = field(
        default=False,
        metadata=_flag("Train low-rank updates (LoRA) of the backbone's layers instead of the backbone; needs peft."),
    )
    lora_r: int = field(default=16, metadata=_flag("Rank of the updates."))
    lora_alpha: int = field(default=32, metadata=_flag("Updates are scaled by lora_alpha / lora_r."))
    lora_dropout: float = field(default=0.0, metadata=_flag("Dropout before the updates."))
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata=_flag("Names of the layers to update, or all-linear (default: peft's choice for the model)."),
    )

    _argument_group_name = "model"

    def __post_init__(self) -> None:
        self._check_lora()
        for name in ("projection_in_dim", "projection_out_dim"):
            if not self.add_pooler and getattr(self, name) != 768:
                raise UserError(f"--{name} is the width of a projection: pass --add_pooler, which adds one")

    def _check_lora(self) -> None:
        given = [name for name, default in _LORA_DEFAULTS.items() if getattr(self, name) != default]
        if given and not self.lora:
            raise UserError(f"--{given[0]} is for --lora: pass that, too, or leave it out")
        for name in ("lora_r", "lora_alpha"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout must lie in [0, 1), not {self.lora_dropout}")


@dataclass
class DataArguments:
    """Which rows are trained on and how they become tokens."""

    dataset_name: list[str] = field(
        default_factory=lambda: [LOCAL_FILES],
        metadata=_flag(
            "Data set on the hub, org/name[/split][:config], or several; json means the files of --train_dir, which "
            "come before it (default: json)."
        ),
    )
    train_dir: list[str] | None = field(
        default=None,
        metadata=_flag(
            "Directory or file with training rows (.jsonl, .json, .parquet, also .gz), or a data set of the hub as "
            "hub:org/name[/split][:config]; several are several data sets."
        ),
    )
    train_weights: list[float] | None = field(
        default=None,
        metadata=_flag(
            "How much each of several data sets trains, relative to the others (default: by their numbers of rows)."
        ),
    )
    batch_sampling: Literal["one_source", "mixed"] | None = field(
        default=None,
        metadata=_flag(
            "Batches of several data sets: rows of one of them at a time (one_source), or of all (mixed) "
            "(default: one_source)."
        ),
    )
    source_query_prefix: list[str] | None = field(
        default=None, metadata=_flag("In place of --query_prefix, one for each data set, while training.")
    )
    source_passage_prefix: list[str] | None = field(
        default=None, metadata=_flag("In place of --passage_prefix, one for each data set, while training.")
    )
    streaming: bool = field(
        default=False,
        metadata=_flag(
            "Read the rows of --dataset_name from the hub while training, for what does not fit the disk; needs "
            "--max_steps."
        ),
    )
    streaming_buffer: int | None = field(
        default=None,
        metadata=_flag("Rows of --streaming in memory, of which a random one comes next (default: 10000)."),
    )
    dataset_proc_num: int = field(default=12, metadata=_flag("Most processes that tokenize the data."))
    data_cache_dir: str | None = field(
        default=None, metadata=_flag("Where tokenized data are kept (default: --cache_dir).")
    )
    train_n_passages: int = field(
        default=8, metadata=_flag("Passages per query and step: 1 positive and train_n_passages - 1 negatives.")
    )
    positive_passage_no_shuffle: bool = field(default=False, metadata=_flag("Always take a row's first positive."))
    negative_passage_no_shuffle: bool = field(default=False, metadata=_flag("Always take a row's first negatives."))
    missing_negatives: Literal["in_batch", "error"] = field(
        default="in_batch",
        metadata=_flag("Rows without any negative: use only the batch's other passages (in_batch), or stop (error)."),
    )
    passage_field_separator: str = field(
        default=" ",
        metadata=_flag("Stands between title and text; the name of a special token (sep_token) means that token."),
    )
    query_prefix: str | None = field(
        default=None,
        metadata=_flag("Put before every query (default: the model directory's query prompt, else nothing)."),
    )
    passage_prefix: str | None = field(
        default=None, metadata=_flag("Put before every passage (default: the model directory's prompt, else nothing).")
    )
    q_max_len: int = field(default=32, metadata=_flag("Most tokens of a query."))
    p_max_len: int = field(default=128, metadata=_flag("Most tokens of a passage."))

    _argument_group_name = "data"

    def __post_init__(self) -> None:
        self.train_dir = [name for name in self.train_dir or [] if name] or None  # an empty variable names nothing
        if LOCAL_FILES in self.dataset_name and self.train_dir is None:
            raise UserError("there is nothing to train on: pass --train_dir DIR_OR_FILE or --dataset_name org/name")
        for name in ("dataset_proc_num", "train_n_passages"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")
        check_sources(self)
        check_streaming(self)

    @property
    def n_sources(self) -> int:
        """Number of data sets."""
        return len(self.source_names())

    def source_names(self) -> list[str]:
        """How messages call the data sets."""
        return self.train_dir or self.dataset_name


@dataclass
class ContrastiveArguments:
    """The loss, the gradient cache and the ranks."""

    temperature: float = field(default=1.0, metadata=_flag("Scores are divided by it before the softmax."))
    negatives_x_device: bool = field(
        default=False,
        metadata=_flag("Score each query against the passages of all processes.", aliases=["--negative_x_device"]),
    )
    mask_duplicates: bool = field(
        default=False, metadata=_flag("Do not count further copies of a query's own positive as its negatives.")
    )
    matryoshka_dims: list[int] | None = field(
        default=None,
        metadata=_flag(
            "Train the first dimensions of a representation, too: the loss is the sum of those of its prefixes of "
            "these lengths (scaled to length 1 with --normalize)."
        ),
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata=_flag("What each of --matryoshka_dims counts in the sum (default: 1 each).")
    )
    false_negative_margin: float | None = field(
        default=None,
        metadata=_flag(
            "Leave passages out of a query's negatives that score more than its positive less this margin, dot "
            "products before --temperature; negative for more than the positive by so much."
        ),
    )
    false_negative_relative_margin: float | None = field(
        default=None, metadata=_flag("The same with a margin that is this share of the positive's score.")
    )
    guide_model: str | None = field(
        default=None,
        metadata=_flag(
            "A model with the same tokenizer, not trained, whose scores decide on false negatives in the place of the "
            "model's own (without a margin flag: what it scores higher than the positive)."
        ),
    )
    distil_temperature: float | None = field(
        default=None,
        metadata=_flag(
            "Learn from a teacher's scores in the rows, too: to the loss comes the divergence (KL) of the softmax over "
            "a query's own passages from the teacher's, whose scores are divided by this."
        ),
    )
    distil_weight: float = field(
        default=1.0, metadata=_flag("What the divergence of --distil_temperature counts beside the contrastive loss.")
    )
    grad_cache: bool = field(
        default=False, metadata=_flag("Gradient caching: batches of any size in the memory of one chunk.")
    )
    gc_q_chunk_size: int = field(
        default=NotGiven(4),
        metadata=_flag(
            "Most queries in a chunk of --grad_cache. If it is not given, rows are not counted: --gc_tokens_per_chunk "
            "limits a chunk (default: v1's 4, which fastdense.jax_train uses)."
        ),
    )
    gc_p_chunk_size: int = field(
        default=NotGiven(32),
        metadata=_flag("Most passages in a chunk, as above (default: v1's 32, which fastdense.jax_train uses)."),
    )
    gc_tokens_per_chunk: str = field(
        default=AUTO,
        metadata=_flag(
            "Most padded tokens in a chunk of --grad_cache, queries and passages together (default: auto, 1024 on a "
            "CPU; on a GPU 4096, v1's 32 passages of 128 tokens, for every 20 GiB of its memory, up to 16384)."
        ),
    )
    gc_keep_graph_gib: str = field(
        default=AUTO,
        metadata=_flag(
            "GiB for the activations of chunks that need not run twice; 0 for none (default: auto, half of a CPU's "
            "available memory or 80 %% of a GPU's, measured in the first step, less what training will need)."
        ),
    )

    _argument_group_name = "loss and gradient cache"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"--temperature must be a positive number, not {self.temperature}")
        check_objective(self)
        check_chunks(self)


@dataclass
class RetrieverTrainingArguments(TrainingArguments):
    """Hugging Face ``TrainingArguments`` with v1's own on top, and defaults that suit a contrastive batch."""

    overwrite_output_dir: bool = field(
        default=False,
        metadata=_flag("Train into an --output_dir that is not empty; old checkpoints in it are removed."),
    )
    warmup_ratio: float = field(
        default=0.1, metadata=_flag("Share of all steps with a rising learning rate; --warmup_steps comes before it.")
    )
    eval_dir: list[str] | None = field(
        default=None,
        metadata=_flag(
            "Held-out set for --eval_strategy: a directory with corpus.jsonl, queries.jsonl and qrels.txt (or BEIR's "
            "layout), irds:ID of the ir_datasets package, or hub:org/name[/split] in NanoBEIR's layout; several are "
            "measured one by one, and their mean chooses the best checkpoint."
        ),
    )
    dry_run: bool = field(
        default=False,
        metadata=_flag("Print the plan (parameters, chunks, expected memory) instead of training; write nothing."),
    )
    # A short last batch would have fewer negatives than all others; v1 drops it, too.
    dataloader_drop_last: bool = field(
        default=True, metadata=_flag("Leave out the last batch of an epoch if it is not full.")
    )
    dataloader_num_workers: int = field(
        default=NotGiven(0),
        metadata=_flag(
            "Processes that make batches beside the step (default: on a CPU none, whose cores the step needs; with a "
            "GPU up to 2)."
        ),
    )
    # The filter would replace a NaN loss in the log by an old mean: a broken run would look sound.
    logging_nan_inf_filter: bool = field(default=False, metadata=_flag("Leave NaN and inf losses out of the log."))
    remove_unused_columns: bool = field(default=False, metadata=_flag("Has no use here: rows are already tokens."))

    _argument_group_name = "training (Hugging Face TrainingArguments and v1's own)"
    _refused: ClassVar[Mapping[str, str]] = {}  # flags that a driver refuses on top of all drivers', and why

    def __post_init__(self) -> None:
        self.keep_given()
        self._check()
        if self.warmup_steps == 0:
            self.warmup_steps = self.warmup_ratio  # a fraction is a share of all steps
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # encoders freeze what they do not use
        if self.ddp_broadcast_buffers is None:
            self.ddp_broadcast_buffers = False  # encoders have no running statistics, and ranks differ in chunks
            # accelerate hands it on by the name that torch 2.13 has renamed
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        if self.eval_dir is not None and self.metric_for_best_model is None:
            self.metric_for_best_model = "mrr@10"
        for today, former in _RENAMED.items():
            if getattr(self, today, False) is None:
                setattr(self, today, getattr(self, former))
        if not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise --bf16 is taken for a wish for a GPU
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        if isinstance(self.dataloader_num_workers, NotGiven):
            self.dataloader_num_workers = default_workers(*machine_share()) if on_gpu else 0
        super().__post_init__()
        if on_gpu and self.given["accelerator_config"] is None:
            self.accelerator_config.non_blocking = self.dataloader_pin_memory  # else a copy waits for the step before
        check_accelerator_config(self.accelerator_config)
        check_checkpointing(self.gradient_checkpointing_kwargs, self.world_size)
        if self.n_gpu > 1:
            raise UserError(
                f"one process sees {self.n_gpu} GPUs; start one process a GPU with torchrun --nproc_per_node "
                f"{self.n_gpu} -m fastdense.train, or show it one GPU with CUDA_VISIBLE_DEVICES=0"
            )

    def keep_given(self) -> None:
        """Remember the flags as they were given, in ``given``: what follows completes them."""
        if not hasattr(self, "given"):
            self.given = {each.name: getattr(self, each.name) for each in fields(self)}

    def _check(self) -> None:
        if not self.do_train:
            raise UserError("nothing to do: pass --do_train")
        if not self.output_dir:
            raise UserError("--output_dir is missing: name the directory that the model is written to")
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"--warmup_ratio must lie between 0 and 1, not {self.warmup_ratio}")
        check_flags(self, self._refused)
        on_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.fp16 and on_cpu:
            raise UserError(
                "--fp16 needs a GPU, and none is in use: a CPU has no fast half precision; leave it out, or use --bf16"
            )
