"""Measures of a ranking against relevance judgements, computed by ir-measures."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastdense.errors import UserError
from fastdense.retrieval.qrels import Qrels
from fastdense.retrieval.rankings import Run

DEFAULT_MEASURES = ("RR@10", "nDCG@10", "R@10", "R@100")
_NAMES = {"mrr": "RR", "rr": "RR", "ndcg": "nDCG", "recall": "R", "r": "R", "map": "AP", "ap": "AP", "p": "P"}
_TREC_NAMES = {"recip_rank": "RR", "ndcg_cut": "nDCG", "map_cut": "AP"}  # those that no other name is near to


def evaluate_run(qrels: Qrels, run: Run, measures: Sequence[str] = DEFAULT_MEASURES) -> dict[str, float]:
    """Means over all queries of ``qrels``; one without results, or without a relevant passage, counts 0.

    Args:
        qrels: relevance of passages by query; above 0 is relevant.
        run: passages by query, best first; queries that ``qrels`` does not know are left out. Only the order counts.
        measures: names of ir-measures (``RR@10``, ``nDCG@10``, ``R@100``) or the field's ``mrr@10``, ``recall@10``.

    Returns:
        The value of every measure, under the name it was asked for with.

    Raises:
        UserError: unknown measure, no query in common, or ir-measures is not installed.
    """
    ir_measures = _ir_measures()
    parsed = {name: parse_measure(name) for name in measures}
    if not qrels.keys() & run.keys():
        raise UserError("no query of the run has a judgement: the run and the qrels belong to different query sets")
    values = ir_measures.calc_aggregate(list(set(parsed.values())), qrels, _by_rank(qrels, run))
    return {name: float(values[measure]) for name, measure in parsed.items()}


def parse_measure(name: str) -> Any:
    """The ir-measures object that ``name`` stands for; raises UserError for a name that stands for none."""
    family, at, cutoff = name.partition("@")
    if at and not (cutoff.isdecimal() and int(cutoff) > 0):
        raise UserError(f"the measure {name!r} needs a whole number above 0 behind its @")
    measure = _measure(_NAMES.get(family.lower(), family), cutoff)
    if measure is None:
        near = _nearest(name)
        raise UserError(f"unknown measure {name!r}: " + (f"did you mean {near}?" if near else "RR@10 is one"))
    return measure


def _measure(family: str, cutoff: str | None) -> Any | None:
    """None where ir-measures has no such measure, or cannot compute it, or not with (or without) a cutoff."""
    ir_measures = _ir_measures()
    try:
        measure = ir_measures.parse_measure(family)
        measure = measure @ int(cutoff) if cutoff else measure  # its parser reads numbers as Python 3.14 does not
        return measure if ir_measures.DefaultPipeline.supports(measure) else None
    except (ValueError, NameError, AssertionError):  # what ir-measures raises for names that it does not know
        return None


def _nearest(name: str) -> str | None:
    """The measure whose name is nearest, large and small letters being the same; trec_eval's ``success_5`` counts."""
    match = re.fullmatch(r"(.*?)(?:[@_.](\d+))?", name, re.DOTALL)
    assert match is not None  # whatever the name is
    asked, cutoff = match.groups()
    known = {family.lower(): family for family in _ir_measures().measures.registry} | _NAMES | _TREC_NAMES
    asked = asked.lower()
    near = [asked] if asked in known else difflib.get_close_matches(asked, known, n=5, cutoff=0.5)
    for at, close in itertools.product((cutoff, None, "10"), near):
        if _measure(known[close], at) is not None:
            return known[close] + (f"@{at}" if at else "")
    return None


def _by_rank(qrels: Mapping[str, object], run: Run) -> dict[str, dict[str, float]]:
    """Scores that fall by rank, so that every measure sees the run's order: providers break ties differently."""
    return {
        query: {passage_id: float(-rank) for rank, passage_id in enumerate(run[query].passage_ids)}
        for query in qrels
        if query in run
    }


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise UserError(f"evaluation needs ir-measures ({error}): pip install 'fastdense[retrieval]'") from None
    return ir_measures
