"""A pytest plugin: a peer's own test files see our drop-ins in place of the classes that they test.

``FASTDENSE_REPLACED`` names the classes of sentence-transformers that are replaced. The session fails if no test has
reached the fused loss, because then nothing of ours was tested.
"""

import os
from typing import Any

import pytest
from sentence_transformers import losses

from fastdense.integrations import sentence_transformers as ours

OURS = {
    "MultipleNegativesRankingLoss": ours.FusedMultipleNegativesRankingLoss,
    "CachedMultipleNegativesRankingLoss": ours.CachedFusedMultipleNegativesRankingLoss,
}
fused_losses: list[str] = []


def pytest_configure() -> None:
    for name in os.environ["FASTDENSE_REPLACED"].split():
        setattr(losses, name, OURS[name])
    original = ours._fused_loss

    def counted(loss: Any, *columns: Any) -> Any:
        fused_losses.append(type(loss).__name__)
        return original(loss, *columns)

    ours._fused_loss = counted


def pytest_sessionfinish(session: pytest.Session) -> None:
    called = set(fused_losses)
    print(f"\nfused: {', '.join(sorted(called)) or 'nothing'} ({len(fused_losses)} losses)")
    if called != {OURS[name].__name__ for name in os.environ["FASTDENSE_REPLACED"].split()}:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
