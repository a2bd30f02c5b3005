"""From documented objects to a retrieval data set: queries, passages, hard negatives and splits."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastdense.data.builtin.extraction import DocumentedObject
from fastdense.data.builtin.texts import inner_queries, passage_text, query_text
from fastdense.errors import UserError

SPLITS = ("train", "dev", "test")

_HELD_OUT_SHARE = 0.1  # of all passages, for dev and test each
_LARGEST_HELD_OUT = 0.25  # of that share
_HARD_NEGATIVES = 4


@dataclass(frozen=True)
class Passage:
    """One searchable text; ``title`` is the object's qualified name. ``module`` decides the split."""

    docid: str
    title: str
    text: str
    module: str


@dataclass(frozen=True)
class Query:
    """A question and the passages that answer it (several, when objects share one summary).

    A positive may lack a sentence of the passage with its docid: the query's own.
    """

    query_id: str
    text: str
    positives: tuple[Passage, ...]


@dataclass(frozen=True)
class RetrievalSet:
    """Passages and queries of each split; no module, passage text or query text is in two splits."""

    passages: dict[str, list[Passage]]
    queries: dict[str, list[Query]]

    def all_passages(self) -> list[Passage]:
        return [passage for split in SPLITS for passage in self.passages[split]]


def build_retrieval_set(objects: Iterable[DocumentedObject]) -> RetrievalSet:
    """Make a data set whose queries are summaries and whose passages are the rest of the same objects.

    Training also asks for sentences taken out of passages. Modules are dealt out whole. A text that turns up in
    several splits stays in the first of train, dev, test, so nothing that is asked or found in dev or test has been
    trained on. The result depends on ``objects`` alone.
    """
    objects = list(objects)
    split_of = split_modules([item.module for item in objects])
    result = RetrievalSet({}, {})
    taken_texts: set[str] = set()
    taken_queries: set[str] = set()
    docids: Counter[str] = Counter()
    for split in SPLITS:
        own = [item for item in objects if split_of[item.module] == split]
        described = list(_distinct_passages(own, taken_texts, docids))
        asked = [(query_text(item), passage) for item, passage in described]
        if split == "train":
            asked.extend(_inner_pairs(described, taken_texts))
        result.passages[split] = [passage for _, passage in described]
        result.queries[split] = _distinct_queries(asked, taken_queries, split)
    return result


def _distinct_passages(
    objects: Iterable[DocumentedObject], taken_texts: set[str], docids: Counter[str]
) -> Iterator[tuple[DocumentedObject, Passage]]:
    """Each object with its passage, those left out whose text is in ``taken_texts``; adds to both collections."""
    for item in objects:
        text = passage_text(item)
        if text in taken_texts:
            continue
        taken_texts.add(text)
        docids[item.qualified_name] += 1
        count = docids[item.qualified_name]
        docid = item.qualified_name if count == 1 else f"{item.qualified_name}#{count}"
        yield item, Passage(docid, item.qualified_name, text, item.module)


def _inner_pairs(
    described: Iterable[tuple[DocumentedObject, Passage]], taken_texts: set[str]
) -> Iterator[tuple[str, Passage]]:
    """Sentences with the passage that each was taken out of, which keeps its docid: it is the same thing."""
    for item, passage in described:
        for query, text in inner_queries(item):
            if text not in taken_texts:
                taken_texts.add(text)
                yield query, replace(passage, text=text)


def _distinct_queries(asked: Iterable[tuple[str | None, Passage]], taken_queries: set[str], split: str) -> list[Query]:
    """One query for each text that is not in ``taken_queries``, whatever its case; adds to it."""
    answers: dict[str, list[tuple[str, Passage]]] = defaultdict(list)
    for text, passage in asked:
        if text is not None and text.casefold() not in taken_queries:
            answers[text.casefold()].append((text, passage))
    taken_queries.update(answers)
    return [
        Query(f"{split}-{number}", group[0][0], tuple(passage for _, passage in group))
        for number, group in enumerate(answers.values())
    ]


def split_modules(modules: Sequence[str]) -> dict[str, str]:
    """The split of every module (given once for each of its objects).

    Modules in the order of their names' hashes fill test, then dev, up to their shares; the rest is train. So the
    choice looks random, and neither a clock nor a seed has a part in it. A large module is never held out, lest
    it be all that is measured.

    Raises:
        UserError: fewer than three modules, so that a split would be empty.
    """
    sizes = Counter(modules)
    if len(sizes) < len(SPLITS):
        raise UserError(
            f"the sources have documented objects in {len(sizes)} modules, but train, dev and test need one each at "
            "least; add another --source"
        )
    share = _HELD_OUT_SHARE * len(modules)
    by_hash = sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest())
    candidates = [module for module in by_hash if sizes[module] <= _LARGEST_HELD_OUT * share]
    if len(candidates) < 2:
        candidates = sorted(by_hash, key=lambda name: sizes[name])[:2]
    split_of = dict.fromkeys(sizes, "train")
    filled: Counter[str] = Counter()
    for module in candidates:
        split = "test" if filled["test"] <= filled["dev"] else "dev"
        if filled[split] < share:
            split_of[module] = split
            filled[split] += sizes[module]
    return split_of


def hard_negatives(query: Query, neighbours: Sequence[Passage]) -> list[Passage]:
    """The passages that stand nearest to the query's first positive in ``neighbours``, its module's passages.

    Positives are left out; a module of few passages gives fewer than usual, or none.
    """
    positives = {passage.docid for passage in query.positives}
    place = next(n for n, passage in enumerate(neighbours) if passage.docid == query.positives[0].docid)
    nearest = sorted(range(len(neighbours)), key=lambda other: (abs(other - place), other))
    return [neighbours[other] for other in nearest if neighbours[other].docid not in positives][:_HARD_NEGATIVES]
