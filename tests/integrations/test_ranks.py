"""The drop-ins over gloo ranks, against what they replace there. ``ranks_worker.py`` is what a rank runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed
WORLD = 2


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> list[dict[str, float]]:
    """Each rank's errors by case."""
    pytest.importorskip("gradcache")
    directory, here = tmp_path_factory.mktemp("ranks"), Path(__file__)
    paths = os.pathsep.join([str(here.parents[2]), str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, here.with_name("ranks_worker.py"), str(rank), str(WORLD), directory],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        messages = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, "\n".join(messages)
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_every_drop_in_equals_what_it_replaces_on_every_rank(errors):
    assert len(errors[0]) == 15
    for found in errors:
        assert {name: error for name, error in found.items() if not error < 2e-6} == {}
