"""The drop-ins over gloo ranks, against what they replace there. ``ranks_worker.py`` is what a rank runs."""

import json
from pathlib import Path

import forked
import pytest

pytestmark = pytest.mark.distributed
WORLD = 2


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> list[dict[str, float]]:
    """Each rank's errors by case."""
    pytest.importorskip("gradcache")
    directory, worker = tmp_path_factory.mktemp("ranks"), Path(__file__).with_name("ranks_worker.py")
    logs = [directory / f"{rank}.log" for rank in range(WORLD)]
    ranks = [
        forked.start([worker, rank, WORLD, directory], log=log, environment={"GLOO_SOCKET_IFNAME": "lo"})
        for rank, log in enumerate(logs)
    ]
    assert forked.end_all(ranks) == [0] * WORLD, "\n".join(log.read_text() for log in logs)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_drop_in_equals_what_it_replaces_on_every_rank(errors):
    assert len(errors[0]) == 15
    for found in errors:
        assert {name: error for name, error in found.items() if not error < 2e-6} == {}
