"""Who computes loss and gradients of a batch: fastdense and other trainers' steps, all on the same weights.

A provider collates examples as its trainer would (``prepare``, which a data loader's workers do and nobody times) and
turns the result into gradients in ``.grad`` (``step``). The loss is everyone's: softmax cross-entropy of the cosines
of all queries and all passages of the batch, times SCALE.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from transformers import AutoTokenizer

from fastdense.data.collation import Collator
from fastdense.data.training_set import Example
from fastdense.modeling.encoder import Retriever
from fastdense.modeling.load import load_retriever
from fastdense.training.arguments import ContrastiveArguments, RetrieverTrainingArguments
from fastdense.training.assemble import make_step
from fastdense.training.cpu import settle_on_cpu
from fastdense.training.distinct import SIDES, DistinctRows, HostRows
from fastdense.training.linear_choice import measured_gains, worth_it
from fastdense.training.linears import use_onednn
from fastdense.training.parser import parse_arguments

SCALE = 20.0
V1_CHUNK_ROWS = {"query": 4, "passage": 32}  # Tevatron v1's defaults


@dataclass(frozen=True)
class Setting:
    """What all providers have in common."""

    model: str  # directory
    device: str = "cpu"
    dtype: str = "float32"
    q_max_len: int = 32
    p_max_len: int = 128
    flags: str = ""  # of fastdense.train, for its cached step


@dataclass(frozen=True)
class Provider:
    """One way to compute a step."""

    model: nn.Module
    backbone: nn.Module
    prepare: Callable[[Sequence[Example]], Any]
    step: Callable[[Any], object]
    cached: bool = True  # whether the batch may be larger than what memory holds activations of


class Providers:
    """Makes providers by name; those that use one model share it."""

    def __init__(self, setting: Setting, token_budgets: Sequence[int]) -> None:
        self.setting = setting
        self._makers: dict[str, Callable[[], Provider]] = {
            "fastdense cached": lambda: self._fastdense(f"--grad_cache {setting.flags}", cached=True),
            "fastdense plain": lambda: self._fastdense("", cached=False),
            "v1-style": self._v1_style,
            "plain autograd": self.plain_autograd,
        }
        if find_spec("sentence_transformers"):
            self._makers["sentence-transformers"] = lambda: self._sentence_transformers(None)
            for budget in token_budgets:
                name = f"sentence-transformers {budget} tokens"
                self._makers[name] = partial(self._sentence_transformers, budget)

    @property
    def names(self) -> list[str]:
        return list(self._makers)

    def make(self, name: str) -> Provider:
        return self._makers[name]()

    def distinct_lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each query and of each passage, once."""
        batch = self._collate(examples)
        return [n for side in SIDES for n in DistinctRows(batch[side], HostRows.of(batch[side])).lengths]

    @cached_property
    def _retriever(self) -> Retriever:
        return self._placed(load_retriever(self.setting.model))

    @cached_property
    def _settled_retriever(self) -> Retriever:
        """The same model as ``fastdense.train`` prepares it."""
        retriever = load_retriever(self.setting.model)
        if self.setting.device == "cpu":
            compiled = "--torch_compile" in self.setting.flags
            settle_on_cpu(retriever, own_attention=True, own_dropout=not compiled)
            if self.setting.dtype == "float32" and not compiled:
                use_onednn(retriever, worth_it(measured_gains(retriever)))
        return self._placed(retriever)

    @cached_property
    def _sentence_transformer(self) -> Any:
        from sentence_transformers import SentenceTransformer

        return self._placed(SentenceTransformer(self.setting.model, device=self.setting.device))

    def _placed(self, model: Any) -> Any:
        """On the device and in the precision that is asked for, as the Hugging Face trainer does it."""
        if self.setting.dtype != "float32":
            autocast = torch.autocast(torch.device(self.setting.device).type, getattr(torch, self.setting.dtype))
            model.forward = convert_outputs_to_fp32(autocast(model.forward))
        return model.to(self.setting.device)

    @cached_property
    def _collator(self) -> Collator:
        tokenizer = AutoTokenizer.from_pretrained(self.setting.model)
        return Collator(tokenizer, q_max_len=self.setting.q_max_len, p_max_len=self.setting.p_max_len)

    def _collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        return self._moved(self._collator(examples))

    def _moved(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._moved(part) for name, part in value.items()}
        return value.to(self.setting.device)

    def _fastdense(self, flags: str, *, cached: bool) -> Provider:
        fixed = f"--output_dir unused --do_train --report_to none --temperature {1 / SCALE}"
        place = "--use_cpu" if self.setting.device == "cpu" else ""
        kinds = (ContrastiveArguments, RetrieverTrainingArguments)
        step = make_step(*parse_arguments("benches.train_step", "", kinds, shlex.split(f"{fixed} {place} {flags}")))
        model = self._settled_retriever
        return self._on(model, self._collate, lambda batch: step(model, batch)[0].backward(), cached=cached)

    def plain_autograd(self) -> Provider:
        """The reference: one forward pass, one backward pass, and torch's own cross-entropy."""

        def step(batch: dict[str, Any]) -> None:
            query, passage = self._retriever(query=batch["query"], passage=batch["passage"])
            _naive_loss(query, passage, batch["target"]).backward()

        return self._on(self._retriever, self._collate, step, cached=False)

    def _v1_style(self) -> Provider:
        """Everything padded to the maximum length, and gradient caching in chunks of V1_CHUNK_ROWS."""
        widths = {"query": self.setting.q_max_len, "passage": self.setting.p_max_len}

        def prepare(examples: Sequence[Example]) -> dict[str, Any]:
            batch = self._collate(examples)
            for side, width in widths.items():
                padding = (0, width - batch[side]["input_ids"].shape[1])
                batch[side] = {name: F.pad(tensor, padding) for name, tensor in batch[side].items()}
            return batch

        return self._on(self._retriever, prepare, lambda batch: _v1_step(self._retriever, batch), cached=True)

    def _on(
        self, model: Retriever, prepare: Callable[..., Any], step: Callable[[Any], object], *, cached: bool
    ) -> Provider:
        return Provider(model, model.query_encoder.backbone, prepare, step, cached)

    def _sentence_transformers(self, budget: int | None) -> Provider:
        """Its cached loss takes the queries, the positives, the first negatives ... each padded by themselves."""
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        model = self._sentence_transformer
        loss = CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_num_tokens=budget)

        def prepare(examples: Sequence[Example]) -> list[dict[str, Tensor]]:
            columns = zip(*(example.passages for example in examples), strict=True)
            first, *others = [
                [Example(example.query, [ids], [0]) for example, ids in zip(examples, column, strict=True)]
                for column in columns
            ]
            batch = self._collate(first)
            return [batch["query"], batch["passage"], *(self._collate(other)["passage"] for other in others)]

        return Provider(model, model[0].auto_model, prepare, lambda features: loss(features, None).backward())


def _naive_loss(query: Tensor, passage: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(SCALE * query @ passage.T, target)


def _v1_step(model: nn.Module, batch: dict[str, Any]) -> None:
    chunks = [(side, rows) for side in V1_CHUNK_ROWS for rows in _row_chunks(batch[side], V1_CHUNK_ROWS[side])]
    states: list[list[Tensor]] = []
    vectors: dict[str, list[Tensor]] = {"query": [], "passage": []}
    with torch.no_grad():
        for side, rows in chunks:
            states.append(_random_states())
            vectors[side].append(_encode(model, side, rows))
    query, passage = (torch.cat(vectors[side]).requires_grad_() for side in ("query", "passage"))
    _naive_loss(query, passage, batch["target"]).backward()
    assert query.grad is not None
    assert passage.grad is not None
    gradients = {"query": iter(query.grad.split(V1_CHUNK_ROWS["query"]))}
    gradients["passage"] = iter(passage.grad.split(V1_CHUNK_ROWS["passage"]))
    for (side, rows), state in zip(chunks, states, strict=True):
        with _replayed(state):
            again = _encode(model, side, rows)
        again.backward(next(gradients[side]))


def _encode(model: nn.Module, side: str, rows: dict[str, Tensor]) -> Tensor:
    return next(vectors for vectors in model(**{side: rows}) if vectors is not None)


def _row_chunks(batch: dict[str, Tensor], rows: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(batch["input_ids"]), rows):
        yield {name: tensor[start : start + rows] for name, tensor in batch.items()}


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


@contextmanager
def _replayed(states: list[Tensor]) -> Iterator[None]:
    """Dropout as it was when ``states`` were taken."""
    with torch.random.fork_rng():
        torch.set_rng_state(states[0])
        if states[1:]:
            torch.cuda.set_rng_state_all(states[1:])
        yield
