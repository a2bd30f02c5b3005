"""sentence-transformers' own test of its cached loss, with our drop-ins in place of what it tests.

The file is not in this repository: name it by ``FASTDENSE_PEER_TEST``. It is in the source distributions before version
5.5:  ``pip download --no-binary :all: --no-deps sentence-transformers==5.1.2``, then ``tests/test_cmnrl.py``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import HubStandIn

PEER_TEST = os.environ.get("FASTDENSE_PEER_TEST")
TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(PEER_TEST is None, reason="FASTDENSE_PEER_TEST names no test file of sentence-transformers'")
@pytest.mark.parametrize(
    "replaced",
    [
        "MultipleNegativesRankingLoss",
        "CachedMultipleNegativesRankingLoss",
        "MultipleNegativesRankingLoss CachedMultipleNegativesRankingLoss",
    ],
)
def test_their_cached_loss_test_passes_with_ours(
    replaced: str, hub: HubStandIn, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    """The plain one against our cached one, ours against theirs, and ours against ours."""
    hub.add_model("distilbert-base-uncased", tiny_bert_dir)  # which it downloads
    environment = hub.environment(tmp_path / "home") | {
        "FASTDENSE_REPLACED": replaced,
        "PYTHONPATH": os.pathsep.join(map(str, [os.environ.get("PYTHONPATH", ""), TESTS, TESTS.parent])).strip(":"),
    }
    settings = ["-p", "ours_for_peers", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull]
    command = [sys.executable, "-m", "pytest", "-q", *settings, str(PEER_TEST)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
