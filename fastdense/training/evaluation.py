"""Retrieval metrics on a held-out corpus while training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fastdense.modeling.settings import RetrieverSettings
from fastdense.retrieval.encode import TextTokenizer
from fastdense.retrieval.evaluate import evaluate_run
from fastdense.retrieval.evaluation_set import EvaluationSet, read_eval_directory
from fastdense.retrieval.rankings import make_run
from fastdense.retrieval.search import exact_search
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


def load_held_out(
    args: RetrieverTrainingArguments, tokenizer: PreTrainedTokenizerBase, settings: RetrieverSettings
) -> HeldOutSet | None:
    """The set in ``--eval_dir``, or None without one."""
    if args.eval_dir is None:
        return None
    return HeldOutSet(read_eval_directory(args.eval_dir), *text_tokenizers(tokenizer, settings))
