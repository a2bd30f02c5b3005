"""Relevance judgements: TREC files, BEIR's tsv, and those of collections by name."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fastdense.data.hub import is_on_hub
from fastdense.errors import UserError
from fastdense.files import check_readable
from fastdense.retrieval.hub_collection import hub_judgements
from fastdense.retrieval.irds import irds_judgements, is_irds
from fastdense.retrieval.rankings import read_lines

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> relevance; above 0 is relevant


def read_qrels(path: str | Path, cache_dir: str | None = None) -> Qrels:
    """Read ``query 0 passage relevance`` (TREC) or ``query<TAB>passage<TAB>relevance`` (BEIR, with or without header).

    ``path`` may also be ``irds:`` and an id of ir_datasets, or ``hub:`` and a data set of the hub
    (:mod:`fastdense.retrieval.hub_collection`), which is kept in ``cache_dir``.

    Raises:
        UserError: the file is missing, empty, malformed (with the line), or judges a pair twice differently.
    """
    name = str(path)
    if is_irds(name):
        return collect_qrels(((name, *judgement) for judgement in irds_judgements(name)), name)
    if is_on_hub(name):
        return collect_qrels(hub_judgements(name, cache_dir), name)
    return collect_qrels(_read_file(Path(path)), name)


def collect_qrels(judgements: Iterable[tuple[str, str, str, int]], name: str) -> Qrels:
    """Judgements from (origin, query id, passage id, relevance); ``name`` is where they are from, for messages.

    Raises:
        UserError: there are none, or a pair is judged twice differently.
    """
    qrels: Qrels = {}
    for origin, query_id, passage_id, relevance in judgements:
        if qrels.setdefault(query_id, {}).setdefault(passage_id, relevance) != relevance:
            raise UserError(f"{origin}: {passage_id!r} has another relevance for {query_id!r} above")
    if not qrels:
        raise UserError(f"{name} holds no relevance judgements")
    return qrels


def _read_file(path: Path) -> Iterator[tuple[str, str, str, int]]:
    check_readable(path)
    if not path.is_file():
        raise UserError(f"there is no file of relevance judgements at {path}")
    for number, line in read_lines(path):
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if number > 1 or fields[0] != "query-id":
            yield f"{path}, line {number}", *_judgement(path, number, line, fields)


def _judgement(path: Path, number: int, line: str, fields: list[str]) -> tuple[str, str, int]:
    try:
        if len(fields) == 4:
            return fields[0], fields[2], int(fields[3])
        if len(fields) == 3:
            return fields[0], fields[1], int(fields[2])
    except ValueError:
        pass  # the same sentence
    raise UserError(
        f"{path}, line {number}: 'query 0 passage relevance' or 'query<TAB>passage<TAB>relevance' with a whole number "
        f"was expected, not {line[:80]!r}"
    )
