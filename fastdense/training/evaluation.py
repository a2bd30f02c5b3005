"""Retrieval metrics on a held-out corpus while training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fastdense.errors import UserError
from fastdense.modeling.settings import RetrieverSettings
from fastdense.retrieval.encode import TextTokenizer
from fastdense.retrieval.evaluate import evaluate_run
from fastdense.retrieval.evaluation_set import EvaluationSet, read_evaluation_set
from fastdense.retrieval.rankings import make_run
from fastdense.retrieval.search import exact_search
from fastdense.retrieval.text_source import is_collection
from fastdense.retrieval.texts import Text
from fastdense.training.arguments import RetrieverTrainingArguments
from fastdense.training.flag_checks import MEASURES

Side = Literal["query", "passage"]
EncodeTexts = Callable[[Side, TextTokenizer, Sequence[Text]], NDArray[np.float32]]
"""Texts to vectors [len(texts), D] with the encoder of queries or of passages, whatever library runs it."""

_DEPTH = 100  # the deepest of the measures


def text_tokenizers(
    tokenizer: PreTrainedTokenizerBase, settings: RetrieverSettings
) -> tuple[TextTokenizer, TextTokenizer]:
    """How queries and passages become tokens under ``settings``, whose lengths are known."""
    assert settings.q_max_len is not None
    assert settings.p_max_len is not None
    query = TextTokenizer(tokenizer, settings.q_max_len, prefix=settings.query_prefix, flag="q_max_len")
    passage = TextTokenizer(
        tokenizer,
        settings.p_max_len,
        prefix=settings.passage_prefix,
        separator=settings.passage_field_separator,
        flag="p_max_len",
    )
    return query, passage


@dataclass(frozen=True)
class HeldOutSet:
    """A corpus with queries and judgements that no training row comes from."""

    texts: EvaluationSet
    query_tokenizer: TextTokenizer
    passage_tokenizer: TextTokenizer

    def measure(self, encode: EncodeTexts, accelerator: Accelerator) -> dict[str, float]:
        """The mean of every measure over the queries; each rank encodes its share, the first one searches."""
        queries = _shared(encode, "query", self.query_tokenizer, self.texts.queries, accelerator)
        passages = _shared(encode, "passage", self.passage_tokenizer, self.texts.passages, accelerator)
        measured = [self._search(queries, passages) if accelerator.is_main_process else None]
        return broadcast_object_list(measured)[0]

    def _search(self, queries: NDArray[np.float32], passages: NDArray[np.float32]) -> dict[str, float]:
        query_ids = [text.text_id for text in self.texts.queries]
        passage_ids = [text.text_id for text in self.texts.passages]
        scores, indices = exact_search(queries, passages, _DEPTH, passage_ids=passage_ids)
        return evaluate_run(self.texts.qrels, make_run(query_ids, passage_ids, scores, indices), MEASURES)


def _shared(
    encode: EncodeTexts, side: Side, tokenize: TextTokenizer, texts: list[Text], accelerator: Accelerator
) -> NDArray[np.float32]:
    """The vectors of all ``texts``, of which each rank encodes its share."""
    rank, world = accelerator.process_index, accelerator.num_processes
    own = encode(side, tokenize, texts[rank::world])
    vectors = np.empty((len(texts), own.shape[1]), dtype=np.float32)
    for shard, part in enumerate(gather_object([own])):
        vectors[shard::world] = part
    return vectors


@dataclass(frozen=True)
class HeldOutSets:
    """The sets that a run is measured on, by name."""

    sets: Mapping[str, HeldOutSet]

    def measure(self, encode: EncodeTexts, accelerator: Accelerator) -> dict[str, float]:
        """Every measure's mean over the sets and, if there are several, its value on each as ``<set>_<measure>``."""
        measured = {name: each.measure(encode, accelerator) for name, each in self.sets.items()}
        means = {measure: fmean(values[measure] for values in measured.values()) for measure in MEASURES}
        if len(measured) == 1:
            return means
        return means | {f"{name}_{measure}": values[measure] for name, values in measured.items() for measure in values}


def load_held_out(
    args: RetrieverTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    settings: RetrieverSettings,
    cache_dir: str | None = None,
) -> HeldOutSets | None:
    """The sets of ``--eval_dir``, or None without any."""
    if not args.eval_dir:
        return None
    tokenizers = text_tokenizers(tokenizer, settings)
    names = dict(zip(set_names(args.eval_dir), args.eval_dir, strict=True))
    return HeldOutSets(
        {name: HeldOutSet(read_evaluation_set(at, cache_dir), *tokenizers) for name, at in names.items()}
    )


def set_names(places: Sequence[str]) -> list[str]:
    """The last part of each path, id or name on the hub; as many parts as tell all of them apart.

    Raises:
        UserError: one is there twice.
    """
    parts = [_parts(place) for place in places]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["-".join(own[-length:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--eval_dir {' '.join(places)} names a set twice: leave one out, or rename it")


def _parts(place: str) -> tuple[str, ...]:
    if is_collection(place):
        return tuple(place.replace(":", "/", 1).split("/"))
    return Path(place).resolve().parts[1:]
