"""A held-out set to measure retrieval on: a corpus, queries, and which passages answer them."""

from dataclasses import dataclass
from pathlib import Path

from fastdense.data.files import ROW_FILE_SUFFIXES, Source, files_source
from fastdense.errors import UserError
from fastdense.files import check_reachable, check_readable
from fastdense.retrieval.qrels import Qrels, read_qrels
from fastdense.retrieval.text_source import is_collection, text_source
from fastdense.retrieval.texts import Text, read_texts

QRELS_NAMES = ("qrels.txt", "qrels.trec", "qrels.tsv", "qrels")


@dataclass(frozen=True)
class EvaluationSet:
    """``queries`` that have judgements, the whole corpus of ``passages``, and the judgements ``qrels``."""

    queries: list[Text]
    passages: list[Text]
    qrels: Qrels


def read_evaluation_set(name: str | Path, cache_dir: str | None = None) -> EvaluationSet:
    """Read the set that ``name`` stands for; queries without a judgement are left out.

    A directory has ``corpus.jsonl``, ``queries.jsonl`` and ``qrels.txt``. Rows of the corpus are ``{docid, title?,
    text}``, of the queries ``{query_id, query}``, or BEIR's ``{_id, title?, text}``; .json, .gz and .parquet will do.
    Judgements are TREC's (``qrels.txt``, ``qrels.trec``) or BEIR's (``qrels.tsv``, or of the files in ``qrels/`` the
    only one or ``test.tsv``, which BEIR measures on).

    ``irds:`` and an id stand for a collection of ir_datasets, ``hub:org/name[/split]`` for one of the hub in NanoBEIR's
    layout (:mod:`fastdense.retrieval.hub_collection`), which is kept in ``cache_dir``.

    Raises:
        UserError: a part is missing or malformed, a judged query is unknown, or no relevant passage is in the corpus.
    """
    name = str(name)
    qrels, query_source, passage_source = _parts(name, cache_dir)
    queries = read_texts(query_source, is_query=True)
    passages = read_texts(passage_source, is_query=False)
    if unknown := qrels.keys() - {query.text_id for query in queries}:
        raise UserError(f"{name}: the judgements speak of the query {min(unknown)!r}, which the queries do not hold")
    relevant = {passage for judged in qrels.values() for passage, relevance in judged.items() if relevance > 0}
    if relevant.isdisjoint(passage.text_id for passage in passages):
        raise UserError(f"{name}: no passage that the judgements call relevant is in the corpus")
    return EvaluationSet([query for query in queries if query.text_id in qrels], passages, qrels)


def _parts(name: str, cache_dir: str | None) -> tuple[Qrels, Source, Source]:
    """The judgements, the queries and the passages."""
    if is_collection(name):
        queries, passages = (text_source([name], is_query=side, cache_dir=cache_dir) for side in (True, False))
        return read_qrels(name, cache_dir), queries, passages
    path = Path(name)
    check_reachable(path)
    if not path.is_dir():
        raise UserError(f"there is no directory {path}; one with corpus.jsonl, queries.jsonl and qrels.txt is expected")
    qrels = read_qrels(_qrels_file(path))
    return qrels, files_source([_row_file(path, "queries")]), files_source([_row_file(path, "corpus")])


def _row_file(directory: Path, stem: str) -> Path:
    files = [directory / f"{stem}{suffix}" for suffix in ROW_FILE_SUFFIXES]
    found = next((file for file in files if _is_file(file)), None)
    if found is None:
        raise UserError(f"{directory} holds no {stem}.jsonl (nor {stem} in .json, .gz or .parquet)")
    return found


def _is_file(path: Path) -> bool:
    check_readable(path)
    return path.is_file()


def _qrels_file(directory: Path) -> Path:
    for name in QRELS_NAMES:
        if _is_file(directory / name):
            return directory / name
    splits = sorted((directory / "qrels").glob("*.tsv"))
    if not splits:
        raise UserError(f"{directory} holds no qrels.txt with the relevance judgements")
    test = directory / "qrels" / "test.tsv"
    if len(splits) > 1 and test not in splits:
        names = ", ".join(file.name for file in splits)
        raise UserError(f"{directory / 'qrels'} holds several files ({names}): copy the wanted one to qrels.tsv")
    return test if test in splits else splits[0]
