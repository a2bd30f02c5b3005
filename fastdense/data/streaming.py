"""Training rows that are read and tokenized while training: nothing of them is kept on the disk."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from fastdense.data.rows import Row, RowError, detect_format, parse_row
from fastdense.data.sampling import negative_indices, positive_index
from fastdense.data.tokenization import RowTokenizer, TextRules
from fastdense.data.training_rows import row_columns
from fastdense.data.training_set import Example, check_comparable
from fastdense.errors import UserError

ROWS_PER_TASK = 64  # a tokenizer is faster with many texts at once
_SHOWN = 80  # characters of a row in a message


@dataclass(frozen=True)
class StreamOrder:
    """Which rows a process takes, and in which order.

    ``buffer`` rows wait in memory, and a random one of them comes next; 0 takes rows as they come.
    """

    seed: int
    buffer: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class PassageChoice:
    """Which of a row's passages are trained on, as in :class:`fastdense.data.training_set.TrainingSet`."""

    n_passages: int
    seed: int
    positive_no_shuffle: bool = False
    negative_no_shuffle: bool = False
    missing_negatives: Literal["in_batch", "error"] = "in_batch"
    teacher_scores: bool = False


class StreamedSet(IterableDataset[Example]):
    """Examples without end: when the rows are through, they come again, in another order and with other passages.

    Every process, and every worker process of its data loader, takes rows that no other one takes. The order is a
    function of the seed alone, so that a resumed run takes the rows that it would have taken; it reads what comes
    before them once more.

    Args:
        stream: rows in any of the formats of :mod:`fastdense.data.rows`.
        name: how messages call it.

    Raises:
        UserError: the first row, read at once, or any later one is malformed, or the stream breaks off.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        rules: TextRules,
        choice: PassageChoice,
        order: StreamOrder,
    ) -> None:
        self._name = name
        self._tokenize = RowTokenizer(tokenizer, rules)
        self._choice = choice
        if choice.teacher_scores:
            check_comparable(choice.n_passages)
        first = next(self._read(stream), None)
        if first is None:
            raise UserError(f"{name}: there are no rows in it, at least one is expected")
        self._format = self._parsed(first, detect_format)
        list(self._examples([first], epoch=0))
        if order.buffer:
            stream = stream.shuffle(seed=order.seed, buffer_size=order.buffer)
        self._stream = split_dataset_by_node(stream, rank=order.rank, world_size=order.world)

    @property
    def n_passages(self) -> int:
        """Most passages of an example."""
        return self._choice.n_passages

    def set_epoch(self, epoch: int) -> None:
        """Nothing: passes over the rows are counted here, and may end in the middle of anything."""

    def __iter__(self) -> Iterator[Example]:
        for epoch in itertools.count():
            self._stream.set_epoch(epoch)
            rows, empty = self._read(self._stream), True
            while task := list(itertools.islice(rows, ROWS_PER_TASK)):
                empty = False
                yield from self._examples(task, epoch)
            if empty:  # a worker process beyond the number of files
                return

    def _read(self, stream: datasets.IterableDataset) -> Iterator[Any]:
        try:
            yield from stream
        except Exception as error:  # the network's, the file format's, the library's own: of many classes
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{self._name}: the stream broke off ({reason}); go on from the last checkpoint with "
                "--resume_from_checkpoint auto, or download the rows and use --train_dir"
            ) from error

    def _parsed(self, raw: Any, parse: Any, *settings: Any) -> Any:
        try:
            return parse(raw, *settings)
        except RowError as error:
            raise UserError(f"{self._name}, the row {str(raw)[:_SHOWN]} ...: {error}") from error

    def _origin(self, row: Row) -> str:
        """A stream has no line numbers: a row is known by its query."""
        return f"{self._name}, the row with the query {str(row.query or row.query_ids)[:_SHOWN]!r}"

    def _examples(self, rows: list[Any], epoch: int) -> Iterator[Example]:
        chosen = [row_columns(*self._chosen(raw, epoch)) for raw in rows]
        columns = self._tokenize({name: [row[name] for row in chosen] for name in chosen[0]})
        for index in range(len(rows)):
            yield self._example({name: column[index] for name, column in columns.items()})

    def _chosen(self, raw: Any, epoch: int) -> tuple[str, Row]:
        """How messages call a row, and the row with the passages alone that it trains on in this pass."""
        row: Row = self._parsed(raw, parse_row, self._format)
        how, origin = self._choice, self._origin(row)
        number = int.from_bytes(blake2b(repr(row.query or row.query_ids).encode(), digest_size=4).digest(), "little")
        turn: dict[str, Any] = {"row": number, "seed": how.seed, "epoch": epoch}
        if not row.negatives and how.n_passages > 1 and how.missing_negatives == "error":
            raise UserError(
                f"{origin}: the row has no negative passage, but --train_n_passages is {how.n_passages}; "
                "set --train_n_passages 1, or --missing_negatives in_batch to use the batch's other passages"
            )
        positive = positive_index(len(row.positives), shuffle=not how.positive_no_shuffle, **turn)
        wanted, shuffle = how.n_passages - 1, not how.negative_no_shuffle
        negatives = negative_indices(len(row.negatives), wanted, shuffle=shuffle, **turn)
        passages = [row.negatives[index] for index in negatives]
        if how.teacher_scores and any(passage.score is None for passage in [row.positives[positive], *passages]):
            raise UserError(f"{origin}: a passage has no teacher score for --distil_temperature")
        return origin, Row(row.query, row.query_ids, [row.positives[positive]], passages)

    def _example(self, columns: dict[str, Any]) -> Example:
        both = {name: columns[f"positive{name}"] + columns[f"negative{name}"] for name in ("s", "_ids", "_scores")}
        scores = both["_scores"] if self._choice.teacher_scores else None
        return Example(columns["query"], both["s"], both["_ids"], scores)
