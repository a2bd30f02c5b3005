"""Rankings (the passages found for each query) and their files: text, TREC run, and Tevatron's pickle.

Order, everywhere: scores descending; equal scores by passage id, descending. That is trec_eval's order, so every
evaluation tool sees the ranking that was written.
"""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdense.errors import UserError
from fastdense.files import atomic_file, check_readable
from fastdense.retrieval.pickles import read_array_pickle

TREC_TAG = "dense"
LINE_FORMS = "'query<TAB>passage<TAB>score' or the six columns of a TREC run ('query Q0 passage rank score tag')"


class Ranked(NamedTuple):
    """One query's passages, best first: ``passage_ids`` and their ``scores`` [k] (float32, or float64 from a file)."""

    passage_ids: list[str]
    scores: NDArray[np.floating]


Run = dict[str, Ranked]  # by query id


def is_rankable(text_id: str) -> bool:
    """Whether an id can stand in a line of a ranking: not empty, without tabs and line breaks."""
    return "\t" not in text_id and text_id.splitlines() == [text_id]


def ranked(passage_ids: Sequence[str], scores: NDArray[np.floating]) -> Ranked:
    """Bring one query's passages into order."""
    by_id = sorted(range(len(passage_ids)), key=lambda i: passage_ids[i], reverse=True)
    order = np.array(by_id, dtype=np.int64)[np.argsort(-scores[by_id], kind="stable")]
    return Ranked([passage_ids[i] for i in order], scores[order])


def make_run(
    query_ids: Sequence[str], passage_ids: Sequence[str], scores: NDArray[np.floating], indices: NDArray[np.int64]
) -> Run:
    """The run of a search: ``scores`` and ``indices`` (into ``passage_ids``) [Q, k], ordered."""
    return {
        query_id: Ranked([passage_ids[i] for i in row.tolist()], row_scores)
        for query_id, row, row_scores in zip(query_ids, indices, scores, strict=True)
    }


def write_run(path: str | Path, run: Run, form: str) -> None:
    """Write ``path`` whole or not at all.

    Args:
        form: ``text`` (``query<TAB>passage<TAB>score``), ``trec`` (``query Q0 passage rank score dense``) or ``pickle``
            (Tevatron's: scores float32 [Q, k] and passage ids as strings [Q, k], queries in the order they were given).
    """
    with atomic_file(path) as temporary:
        if form == "pickle":
            with temporary.open("wb") as file:
                pickle.dump(_as_arrays(run), file, protocol=4)
            return
        lines = _text_lines(run) if form == "text" else _trec_lines(run)
        with temporary.open("w", encoding="utf-8") as text:
            text.writelines(lines)


def _text_lines(run: Run) -> Iterator[str]:
    # !s is float32's own shortest form; a plain {score} would be formatted as the float64 beside it.
    for query_id, (passage_ids, scores) in run.items():
        yield from (f"{query_id}\t{p}\t{s!s}\n" for p, s in zip(passage_ids, scores, strict=True))


def _trec_lines(run: Run) -> Iterator[str]:
    for query_id, (passage_ids, scores) in run.items():
        for name in (query_id, *passage_ids):
            if len(name.split()) != 1:
                raise UserError(f"the id {name!r} holds a space, which a TREC run cannot: choose --format text")
        for rank, (passage_id, score) in enumerate(zip(passage_ids, scores, strict=True), 1):
            yield f"{query_id} Q0 {passage_id} {rank} {score!s} {TREC_TAG}\n"


def _as_arrays(run: Run) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    depths = {len(found.scores) for found in run.values()}
    if len(depths) != 1:
        raise UserError("the queries have different numbers of passages, which a pickle cannot hold: use --format text")
    scores = np.stack([found.scores for found in run.values()]).astype(np.float32)
    return scores, np.array([found.passage_ids for found in run.values()], dtype=np.str_)


def read_run(path: str | Path, query_ids: Sequence[str] | None = None) -> Run:
    """Read a ranking in any of the three forms; the content tells which.

    Args:
        query_ids: the queries of a pickle, which does not name them.

    Raises:
        UserError: the file is missing, empty or malformed (with the line), or a pickle without ``query_ids``.
    """
    path = Path(path)
    check_readable(path)
    if not path.is_file():
        raise UserError(f"there is no ranking at {path}")
    with path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"  # no text in UTF-8 starts with this byte
    if is_pickle:
        return _read_pickle(path, query_ids)
    if not (run := _read_text(path)):
        raise UserError(f"{path} holds no ranking: {LINE_FORMS} were expected; write it again")
    return run


def _read_text(path: Path) -> Run:
    passages: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        query_id, passage_id, score = _parse_line(path, number, line)
        found = passages.setdefault(query_id, {})
        if passage_id in found:
            raise UserError(f"{path}, line {number}: passage {passage_id!r} occurs twice for query {query_id!r}")
        found[passage_id] = score
    return {query: ranked(list(found), np.fromiter(found.values(), np.float64)) for query, found in passages.items()}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line of ``path`` that is not blank; a byte order mark is no part of it."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file in UTF-8") from None


def _parse_line(path: Path, number: int, line: str) -> tuple[str, str, float]:
    fields = line.split("\t")
    if len(fields) == 3:
        query_id, passage_id, score = fields
    elif len(fields := line.split()) == 6:
        query_id, _, passage_id, _, score, _ = fields
    else:
        raise UserError(f"{path}, line {number}: {LINE_FORMS} were expected, not {line[:80]!r}")
    try:
        value = float(score)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{path}, line {number}: the score {score!r} is no finite number")
    return query_id, passage_id, value


def _read_pickle(path: Path, query_ids: Sequence[str] | None) -> Run:
    if query_ids is None:
        raise UserError(f"{path} is a pickle and names no queries: write it with --save_text, or merge it with --query")
    match read_array_pickle(path):
        case [np.ndarray() as scores, np.ndarray() as passage_ids] if (
            scores.ndim == 2 and scores.shape == passage_ids.shape
        ):
            pass
        case _:
            raise UserError(f"{path}: a pickle of (scores [Q, k], passage ids [Q, k]) was expected")
    if len(scores) != len(query_ids):
        raise UserError(f"{path} ranks for {len(scores)} queries, but --query holds {len(query_ids)}")
    rows = zip(query_ids, passage_ids.astype(np.str_).tolist(), scores, strict=True)
    return {query: ranked(ids, row_scores) for query, ids, row_scores in rows}


def ranking_files(directory: str | Path) -> list[Path]:
    """The files in a directory of rankings, sorted by name."""
    directory = Path(directory)
    check_readable(directory)
    files = sorted(file for file in directory.glob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise UserError(f"there is no directory {directory} with rankings in it")
    return files


def merge_runs(runs: Iterable[tuple[str, Run]], depth: int | None = None) -> Run:
    """Merge the rankings of separately searched shards, given as (name for messages, run).

    Args:
        depth: how many passages to keep for a query; None keeps as many as the deepest of the runs has.

    Raises:
        UserError: a passage occurs in two runs for one query: these are not shards of one corpus.
    """
    merged: Run = {}
    for name, run in runs:
        deepest = max((len(found.scores) for found in [*run.values(), *merged.values()]), default=0)
        for query, found in run.items():
            merged[query] = _merge(merged.get(query), found, depth or deepest, (query, name))
    return merged


def _merge(one: Ranked | None, other: Ranked, depth: int, where: tuple[str, str]) -> Ranked:
    if one is None:
        return Ranked(other.passage_ids[:depth], other.scores[:depth])
    if twice := set(one.passage_ids) & set(other.passage_ids):
        query, name = where
        raise UserError(
            f"{name}: passage {min(twice)!r} was found for query {query!r} in another file already; "
            "only rankings of different shards of one corpus can be merged"
        )
    scores = np.concatenate([one.scores, other.scores])
    both = ranked([*one.passage_ids, *other.passage_ids], scores)
    return Ranked(both.passage_ids[:depth], both.scores[:depth])
