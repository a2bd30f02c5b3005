"""Relevance judgements: TREC files and BEIR's tsv."""

from pathlib import Path

from fastdense.errors import UserError
from fastdense.retrieval.rankings import read_lines

Qrels = dict[str, dict[str, int]]  # query id -> passage id -> relevance; above 0 is relevant


def read_qrels(path: str | Path) -> Qrels:
    """Read ``query 0 passage relevance`` (TREC) or ``query<TAB>passage<TAB>relevance`` (BEIR, with or without header).

    Raises:
        UserError: the file is missing, empty, malformed (with the line), or judges a pair twice differently.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file of relevance judgements at {path}")
    qrels: Qrels = {}
    for number, line in read_lines(path):
        fields = line.split("\t") if line.count("\t") == 2 else line.split()
        if number == 1 and fields[0] == "query-id":
            continue
        query_id, passage_id, relevance = _judgement(path, number, line, fields)
        if qrels.setdefault(query_id, {}).setdefault(passage_id, relevance) != relevance:
            raise UserError(f"{path}, line {number}: {passage_id!r} has another relevance for {query_id!r} above")
    if not qrels:
        raise UserError(f"{path} holds no relevance judgements")
    return qrels


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
