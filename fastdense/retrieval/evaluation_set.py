"""A held-out set to measure retrieval on: a corpus, queries, and which passages answer them."""

from dataclasses import dataclass
from pathlib import Path

from fastdense.data.files import ROW_FILE_SUFFIXES, files_source
from fastdense.errors import UserError
from fastdense.retrieval.qrels import Qrels, read_qrels
from fastdense.retrieval.texts import Text, read_texts

QRELS_NAMES = ("qrels.txt", "qrels.trec", "qrels.tsv", "qrels")


@dataclass(frozen=True)
class EvaluationSet:
    """``queries`` that have judgements, the whole corpus of ``passages``, and the judgements ``qrels``."""

    queries: list[Text]
    passages: list[Text]
    qrels: Qrels


def read_eval_directory(path: str | Path) -> EvaluationSet:
    """Read ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.txt`` of a directory.

    Rows of the corpus are ``{docid, title?, text}``, of the queries ``{query_id, query}``, or BEIR's ``{_id, title?,
    text}``; .json, .gz and .parquet do as well. Judgements are TREC's (``qrels.txt``, ``qrels.trec``) or BEIR's
    (``qrels.tsv``, or of the files in ``qrels/`` the only one or ``test.tsv``, which BEIR measures on). Queries without
    a judgement are left out.

    Raises:
        UserError: a file is missing or malformed, a judged query is unknown, or no relevant passage is in the corpus.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"there is no directory {path}; one with corpus.jsonl, queries.jsonl and qrels.txt is expected")
    qrels = read_qrels(_qrels_file(path))
    queries = read_texts(files_source([_row_file(path, "queries")]), is_query=True)
    passages = read_texts(files_source([_row_file(path, "corpus")]), is_query=False)
    if unknown := qrels.keys() - {query.text_id for query in queries}:
        raise UserError(f"{path}: the judgements speak of the query {min(unknown)!r}, which the queries do not hold")
    relevant = {passage for judged in qrels.values() for passage, relevance in judged.items() if relevance > 0}
    if relevant.isdisjoint(passage.text_id for passage in passages):
        raise UserError(f"{path}: no passage that the judgements call relevant is in the corpus")
    return EvaluationSet([query for query in queries if query.text_id in qrels], passages, qrels)


def _row_file(directory: Path, stem: str) -> Path:
    files = [directory / f"{stem}{suffix}" for suffix in ROW_FILE_SUFFIXES]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(f"{directory} holds no {stem}.jsonl (nor {stem} in .json, .gz or .parquet)")
    return found


def _qrels_file(directory: Path) -> Path:
    for name in QRELS_NAMES:
        if (directory / name).is_file():
            return directory / name
    splits = sorted((directory / "qrels").glob("*.tsv"))
    if not splits:
        raise UserError(f"{directory} holds no qrels.txt with the relevance judgements")
    test = directory / "qrels" / "test.tsv"
    if len(splits) > 1 and test not in splits:
        names = ", ".join(file.name for file in splits)
        raise UserError(f"{directory / 'qrels'} holds several files ({names}): copy the wanted one to qrels.tsv")
    return test if test in splits else splits[0]
