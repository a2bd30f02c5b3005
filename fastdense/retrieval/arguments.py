"""The flags of encode, search, evaluate, mine and export, as dataclasses.

Names and defaults are Tevatron v1's where it has the flag. Checks that need nothing but the flags themselves stand
here; checks against files stand where the file is read.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from fastdense.errors import UserError
from fastdense.retrieval.evaluate import DEFAULT_MEASURES
from fastdense.retrieval.mining import MiningRules

ROW_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # of the files that mine writes
LOCAL_FILES = "json"  # the --dataset_name that stands for none, here as in training


def _flag(help: str, **metadata: object) -> dict[str, object]:
    return {"help": help, **metadata}


@dataclass
class EncoderArguments:
    """Which model encodes, and how."""

    model_name_or_path: str = field(metadata=_flag("Trained retriever: a directory or a name on the Hugging Face hub."))
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
    pooling: Literal["cls", "mean", "last"] | None = field(
        default=None,
        metadata=_flag("Token(s) that stand for a text: cls, mean or last (default: what the model says, else cls)."),
    )
    normalize: bool | None = field(
        default=None,
        metadata=_flag("Scale vectors to length 1 (default: what the model says, else no).", nargs="?", const=True),
    )
    truncate_dim: int | None = field(
        default=None,
        metadata=_flag(
            "Keep so many dimensions of a vector, the first, for a model trained with --matryoshka_dims; one that is "
            "normalized is scaled to length 1 again."
        ),
    )
    fp16: bool = field(default=False, metadata=_flag("Compute in float16 (autocast); needs a GPU."))
    bf16: bool = field(default=False, metadata=_flag("Compute in bfloat16 (autocast)."))
    per_device_eval_batch_size: int = field(default=8, metadata=_flag("Texts encoded at a time."))

    _argument_group_name = "model"

    def __post_init__(self) -> None:
        if self.per_device_eval_batch_size < 1:
            raise UserError(f"--per_device_eval_batch_size must be at least 1, not {self.per_device_eval_batch_size}")
        if self.truncate_dim is not None and self.truncate_dim < 1:
            raise UserError(f"--truncate_dim must be at least 1, not {self.truncate_dim}")


@dataclass
class EncodeArguments:
    """Which texts are encoded, and where the vectors go."""

    encoded_save_path: str = field(
        metadata=_flag(
            "File to write: .npy (ids beside it in .ids.txt), .safetensors, or with any other ending Tevatron's pickle."
        )
    )
    encode_in_path: list[str] | None = field(
        default=None, metadata=_flag("Files or directories of rows: .jsonl, .json, either with .gz, or .parquet.")
    )
    dataset_name: str = field(
        default=LOCAL_FILES,
        metadata=_flag(
            "Data set on the hub instead: org/name[/split][:config]; or irds:ID of the ir_datasets package."
        ),
    )
    encode_is_qry: bool = field(default=False, metadata=_flag("The rows are queries; without it, passages."))
    encode_num_shard: int = field(default=1, metadata=_flag("Number of parts to encode separately."))
    encode_shard_index: int = field(
        default=0, metadata=_flag("Which part this is: rows INDEX, INDEX + NUM_SHARD, ... (from 0).")
    )
    encode_rows_per_shard: int | None = field(
        default=None,
        metadata=_flag(
            "Write a file for every so many rows instead of one (name-00000-of-00012.npy ...), under torchrun each "
            "process its share; files that are there already are kept, so a run that was killed goes on."
        ),
    )
    q_max_len: int | None = field(
        default=None, metadata=_flag("Tokens of a query at most (default: what the model says, else 32).")
    )
    p_max_len: int | None = field(
        default=None, metadata=_flag("Tokens of a passage at most (default: what the model says, else 128).")
    )
    query_prefix: str | None = field(
        default=None, metadata=_flag("Text before every query (default: what the model says, else none).")
    )
    passage_prefix: str | None = field(
        default=None, metadata=_flag("Text before every passage (default: what the model says, else none).")
    )
    passage_field_separator: str | None = field(
        default=None,
        metadata=_flag(
            "Text between title and text, or the name of a token such as sep_token (default: what the model says, "
            "else a space)."
        ),
    )
    output_dir: str | None = field(
        default=None, metadata=_flag("Taken for Tevatron's commands, which need it; nothing is written there.")
    )
    dataset_proc_num: int = field(
        default=12, metadata=_flag("Taken for Tevatron's commands; tokenization uses all cores by itself.")
    )

    _argument_group_name = "texts"

    def __post_init__(self) -> None:
        if (self.encode_in_path is None) == (self.dataset_name == LOCAL_FILES):
            raise UserError("give the texts to encode by one of --encode_in_path FILE... and --dataset_name NAME")
        if self.encode_num_shard < 1:
            raise UserError(f"--encode_num_shard must be at least 1, not {self.encode_num_shard}")
        if self.encode_rows_per_shard is not None:
            if self.encode_rows_per_shard < 1:
                raise UserError(f"--encode_rows_per_shard must be at least 1, not {self.encode_rows_per_shard}")
            if self.encode_num_shard > 1:
                raise UserError("--encode_rows_per_shard encodes all shards: leave --encode_num_shard out")
        if not 0 <= self.encode_shard_index < self.encode_num_shard:
            raise UserError(
                f"--encode_shard_index {self.encode_shard_index} is out of range: with --encode_num_shard "
                f"{self.encode_num_shard} it goes from 0 to {self.encode_num_shard - 1}"
            )


@dataclass
class SearchArguments:
    """What is searched, or merged, and where the ranking goes."""

    save_ranking_to: str = field(metadata=_flag("File to write the ranking to."))
    query_reps: str | None = field(default=None, metadata=_flag("File of query vectors.", aliases=["--query"]))
    passage_reps: str | None = field(
        default=None, metadata=_flag("Files of passage vectors: a path or a quoted glob such as 'emb/*'.")
    )
    merge: list[str] | None = field(
        default=None,
        metadata=_flag("Instead of searching, merge these rankings of separately searched shards (any format)."),
    )
    score_dir: str | None = field(
        default=None, metadata=_flag("Like --merge, for all files of this directory (the reducer of Tevatron).")
    )
    depth: int | None = field(
        default=None,
        metadata=_flag("Passages kept for a query (default: 1000; when merging, as many as the deepest ranking has)."),
    )
    batch_size: int = field(default=128, metadata=_flag("Queries searched at a time; 0 or less searches all at once."))
    save_text: bool = field(default=False, metadata=_flag("Like --format text."))
    format: Literal["text", "trec", "pickle"] | None = field(
        default=None,
        metadata=_flag(
            "text (query<TAB>passage<TAB>score), trec (a TREC run) or pickle (Tevatron's arrays); "
            "default: pickle, and text when merging."
        ),
    )

    _argument_group_name = "search"

    def __post_init__(self) -> None:
        if self.save_text and self.format not in (None, "text"):
            raise UserError(f"--save_text contradicts --format {self.format}: leave one of them out")
        if self.depth is not None and self.depth < 1:
            raise UserError(f"--depth must be at least 1, not {self.depth}")
        if self.merge is not None and self.score_dir is not None:
            raise UserError("--merge and --score_dir both name the rankings to merge: leave one of them out")
        if self.merging and self.passage_reps is not None:
            raise UserError("--passage_reps is for searching: leave it out when rankings are merged")
        if not self.merging and (self.query_reps is None or self.passage_reps is None):
            raise UserError("searching needs --query_reps and --passage_reps, merging needs --merge FILE...")

    @property
    def merging(self) -> bool:
        """Whether rankings are merged instead of vectors searched."""
        return self.merge is not None or self.score_dir is not None

    @property
    def output_format(self) -> str:
        """``text``, ``trec`` or ``pickle``."""
        return self.format or ("text" if self.save_text or self.merging else "pickle")


@dataclass
class EvaluateArguments:
    """What is measured."""

    qrels: str = field(
        metadata=_flag(
            "Relevance judgements: a TREC file, BEIR's .tsv, irds:ID of the ir_datasets package, or "
            "hub:org/name[/split] in NanoBEIR's layout."
        )
    )
    run: str = field(metadata=_flag("Ranking to judge: a TREC run or query<TAB>passage<TAB>score."))
    measures: list[str] = field(
        default_factory=lambda: list(DEFAULT_MEASURES),
        metadata=_flag("Measures by the names of ir-measures, or mrr@10, ndcg@10, recall@100 ..."),
    )
    output: str | None = field(default=None, metadata=_flag("JSON file to write the values to as well."))

    _argument_group_name = "evaluation"


@dataclass
class MineArguments:
    """Where queries, passages and known positives are, and which passages become negatives."""

    query_reps: str = field(metadata=_flag("File of query vectors."))
    passage_reps: str = field(metadata=_flag("Files of passage vectors: a path or a quoted glob such as 'emb/*'."))
    corpus: list[str] = field(
        metadata=_flag("Files or directories of the passages that were encoded; or irds:ID or hub:org/name[/split].")
    )
    save_rows_to: str = field(
        metadata=_flag("File of training rows to write (Tevatron's, JSON lines): .jsonl or .json, either with .gz.")
    )
    train_dir: list[str] | None = field(
        default=None,
        metadata=_flag(
            "Training rows with query_id, query and known positives; negatives that they have are replaced."
        ),
    )
    queries: list[str] | None = field(
        default=None,
        metadata=_flag(
            "Instead of training rows: files or directories of queries, irds:ID or hub:org/name, with --qrels."
        ),
    )
    qrels: str | None = field(
        default=None,
        metadata=_flag("Relevance judgements for --queries: a TREC file, BEIR's .tsv, irds:ID or hub:org/name."),
    )
    num_negatives: int = field(default=30, metadata=_flag("Negatives of a query at most."))
    range_min: int = field(default=0, metadata=_flag("Skip so many of the passages found."))
    range_max: int = field(
        default=200, metadata=_flag("Look at so many of the passages found, those skipped included.")
    )
    max_score: float | None = field(default=None, metadata=_flag("Discard passages that score above this."))
    min_score: float | None = field(default=None, metadata=_flag("Discard passages that score below this."))
    absolute_margin: float | None = field(
        default=None,
        metadata=_flag("Discard passages that do not score so much below the query's lowest-scoring positive."),
    )
    relative_margin: float | None = field(
        default=None, metadata=_flag("The same as a share of the positive's score: 0.05 wants 5 percent below it.")
    )
    sampling_strategy: Literal["random", "top"] = field(
        default="random", metadata=_flag("Which of the passages that are left: any of them, or the best.")
    )
    seed: int = field(default=42, metadata=_flag("Seed of the sampling."))
    batch_size: int = field(default=128, metadata=_flag("Queries searched at a time; 0 or less searches all at once."))

    _argument_group_name = "mining"

    def __post_init__(self) -> None:
        if (self.train_dir is None) == (self.qrels is None) or (self.qrels is None) != (self.queries is None):
            raise UserError("name the known positives by --train_dir ROWS..., or by --queries FILE... and --qrels FILE")
        if not self.save_rows_to.endswith(ROW_ENDINGS):
            raise UserError(
                f"--save_rows_to {self.save_rows_to} must end in {', '.join(ROW_ENDINGS)}: JSON lines are written, and "
                "read by that ending"
            )
        if self.num_negatives < 1:
            raise UserError(f"--num_negatives must be at least 1, not {self.num_negatives}")
        if self.range_min < 0:
            raise UserError(f"--range_min must be at least 0, not {self.range_min}")
        if self.range_max - self.range_min < self.num_negatives:
            raise UserError(
                f"--range_min {self.range_min} and --range_max {self.range_max} leave "
                f"{max(0, self.range_max - self.range_min)} passages a query, fewer than --num_negatives "
                f"{self.num_negatives}"
            )
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        for name in ("max_score", "min_score", "absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UserError(f"--{name} must be a finite number, not {value}")
        if self.max_score is not None and self.min_score is not None and self.max_score < self.min_score:
            raise UserError(f"--min_score {self.min_score} is above --max_score {self.max_score}: no score fits both")

    @property
    def rules(self) -> MiningRules:
        """Which passages become negatives."""
        return MiningRules(**{name: getattr(self, name) for name in MiningRules.__dataclass_fields__})


@dataclass
class ExportArguments:
    """Which vectors go where, and in what form."""

    passage_reps: str = field(metadata=_flag("Files of passage vectors: a path or a quoted glob such as 'emb/*'."))
    export_to: str = field(
        metadata=_flag(
            "File to write: .faiss (a faiss index, ids beside it in .faiss.ids.txt), .parquet or .arrow (a table of id "
            "and vector)."
        )
    )
    faiss_factory: str | None = field(
        default=None,
        metadata=_flag("The index, in faiss's words: Flat, HNSW32, IVF4096,PQ96 ... (default: Flat, which is exact)."),
    )
    faiss_train_rows: int = field(
        default=262144, metadata=_flag("Vectors, evenly spread over all, that an index which learns is trained on.")
    )

    _argument_group_name = "export"

    def __post_init__(self) -> None:
        endings = (".faiss", ".parquet", ".arrow")
        if not self.export_to.endswith(endings):
            raise UserError(
                f"--export_to {self.export_to} must end in {', '.join(endings)}, which says what is written"
            )
        if self.faiss_factory is not None and not self.export_to.endswith(".faiss"):
            raise UserError(f"--faiss_factory is for an index in a .faiss file, not for --export_to {self.export_to}")
        if self.faiss_train_rows < 1:
            raise UserError(f"--faiss_train_rows must be at least 1, not {self.faiss_train_rows}")
