"""What one row trains on in one epoch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from fastdense.data.sampling import negative_indices, positive_index
from fastdense.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """A query and its passages, positive first, as token ids without special tokens."""

    query: list[int]
    passages: list[list[int]]
    identities: list[int]
    """A signed 64-bit number for each passage; equal passages have equal numbers."""
    scores: list[float] | None = None
    """A teacher's score of each passage, where it is asked for."""


class TrainingSet(Dataset[Example]):
    """Tokenized rows as examples of one positive and ``n_passages - 1`` negatives, chosen anew in every epoch.

    ``rows`` is what :func:`fastdense.data.training_rows.load_training_rows` returns. The choice is
    :mod:`fastdense.data.sampling`'s, a function of (row, seed, epoch) alone.

    ``missing_negatives`` says what a row without any negative does while ``n_passages`` is more than 1:

    - ``"in_batch"`` (default): it brings its positive alone and learns from the other passages of the batch. Data
      without negatives then trains as it is, and a few such rows among many do no harm. A warning counts them, so that
      negatives lost to a misspelt field do not stay unnoticed.
    - ``"error"``: :class:`UserError` naming the first such row and saying how to choose.

    With ``teacher_scores`` examples carry the rows' scores; :class:`UserError` names the first row that lacks one.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        n_passages: int,
        seed: int,
        *,
        positive_no_shuffle: bool = False,
        negative_no_shuffle: bool = False,
        missing_negatives: Literal["in_batch", "error"] = "in_batch",
        teacher_scores: bool = False,
    ) -> None:
        if n_passages < 1:
            raise UserError(f"--train_n_passages is {n_passages}, at least 1 (the positive) is expected")
        self._rows = rows
        self._n_negatives = n_passages - 1
        self._seed = seed
        self._shuffle_positives = not positive_no_shuffle
        self._shuffle_negatives = not negative_no_shuffle
        # In shared memory, so that worker processes of a data loader, persistent ones too, see every new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._teacher_scores = teacher_scores
        if self._n_negatives:
            self._check_negatives(missing_negatives)
        if teacher_scores:
            self._check_scores()

    @cached_property
    def _columns(self) -> dict[str, pa.ChunkedArray]:
        """The rows' columns, still in the memory-mapped file: an example decodes nothing but what it chooses."""
        table = self._rows.with_format("arrow")[:]
        return {name: table[name] for name in table.column_names}

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker process opens the file itself: pickled columns would be copies of all of it.
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def _check_negatives(self, missing_negatives: str) -> None:
        without = pc.indices_nonzero(pc.equal(pc.list_value_length(self._columns["negatives"]), 0))
        if not len(without):
            return
        if missing_negatives == "error":
            origin = self._columns["origin"][without[0].as_py()].as_py()
            raise UserError(
                f"{origin}: the row has no negative passage, but --train_n_passages is {self._n_negatives + 1}; give "
                "it one, set --train_n_passages 1, or --missing_negatives in_batch to use the batch's other passages"
            )
        logger.warning(
            "%d of %d rows have no negative passages; they train against the other passages of their batch alone",
            len(without),
            len(self),
        )

    def _check_scores(self) -> None:
        check_comparable(self.n_passages)
        for side in ("positive", "negative"):
            scores = self._columns[f"{side}_scores"]
            without = pc.indices_nonzero(pc.is_null(pc.list_flatten(scores)))
            if len(without):
                row = pc.list_parent_indices(scores)[without[0].as_py()].as_py()
                number = scores[row].as_py().index(None) + 1
                raise UserError(
                    f"{self._columns['origin'][row].as_py()}: {side} passage {number} has no teacher score for "
                    "--distil_temperature; every passage needs a finite number: score beside its text in Tevatron "
                    "rows, or a place in pos_scores and neg_scores of FlagEmbedding rows"
                )

    @property
    def n_passages(self) -> int:
        """Most passages of an example."""
        return self._n_negatives + 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the passages of ``epoch`` (from 0) from now on, in worker processes as well."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        choice: dict[str, Any] = {"row": index, "seed": self._seed, "epoch": int(self._epoch)}
        positives, negatives = self._values("positives", index), self._values("negatives", index)
        positive = positive_index(len(positives), shuffle=self._shuffle_positives, **choice)
        chosen = negative_indices(len(negatives), self._n_negatives, shuffle=self._shuffle_negatives, **choice)
        numbers = self._values("negative_ids", index)
        return Example(
            query=_ids(self._columns["query"][index]),
            passages=[_ids(positives[positive]), *(_ids(negatives[i]) for i in chosen)],
            identities=[self._values("positive_ids", index)[positive].as_py(), *(numbers[i].as_py() for i in chosen)],
            scores=self._scores(index, positive, chosen) if self._teacher_scores else None,
        )

    def _scores(self, index: int, positive: int, negatives: Sequence[int]) -> list[float]:
        scores = self._values("negative_scores", index)
        return [self._values("positive_scores", index)[positive].as_py(), *(scores[i].as_py() for i in negatives)]

    def _values(self, column: str, index: int) -> pa.Array:
        return self._columns[column][index].values


def check_comparable(n_passages: int) -> None:
    """Raise UserError where a teacher's scores would compare a passage with itself."""
    if n_passages < 2:
        raise UserError(
            "--distil_temperature compares the passages of a query, of which --train_n_passages 1 leaves one: raise "
            "it, or leave --distil_temperature out"
        )


def _ids(scalar: pa.ListScalar) -> list[int]:
    return scalar.values.to_numpy().tolist()  # as_py would make a scalar of every id first
