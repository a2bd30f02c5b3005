"""Measures of a ranking against relevance judgements, computed by ir-measures."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastdense.errors import UserError
from fastdense.retrieval.qrels import Qrels
from fastdense.retrieval.rankings import Run

DEFAULT_MEASURES = ("RR@10", "nDCG@10", "R@10", "R@100")
_NAMES = {"mrr": "RR", "rr": "RR", "ndcg": "nDCG", "recall": "R", "r": "R", "map": "AP", "ap": "AP", "p": "P"}


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
    ir_measures = _ir_measures()
    family, at, cutoff = name.partition("@")
    if at and not (cutoff.isdecimal() and int(cutoff) > 0):
        raise UserError(f"the measure {name!r} needs a whole number above 0 behind its @")
    try:
        measure = ir_measures.parse_measure(_NAMES.get(family.lower(), family))
        measure = measure @ int(cutoff) if at else measure  # its parser reads numbers in a way that Python 3.14 dropped
        if ir_measures.DefaultPipeline.supports(measure):
            return measure
    except (ValueError, NameError, AssertionError):  # what ir-measures raises for names that it does not know
        pass
    known = [*DEFAULT_MEASURES, "mrr@10", "ndcg@10", "recall@10", "recall@100", "AP", "P@10"]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    raise UserError(f"unknown measure {name!r}: {f'did you mean {close[0]}?' if close else 'RR@10 is one'}")


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
