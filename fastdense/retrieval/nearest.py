"""Candidates of a search: the passages whose inner products, computed in float32, are largest.

On a CPU faiss finds them; on any other device PyTorch does. Both are exact but for rounding, which
:mod:`fastdense.retrieval.search` makes up for.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastdense.errors import UserError

TILE_BYTES = 2**28  # of scores on the device at a time

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


def search_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Nearest:
    """Passages [M, D] on ``device``, where they stay for all batches of queries.

    Raises:
        UserError: ``device`` is a CPU and faiss is not installed.
    """

    def __init__(self, passages: Floats, device: torch.device) -> None:
        self._faiss = import_faiss() if device.type == "cpu" else None
        self._on_cpu = passages
        self._on_device = None if self._faiss else torch.tensor(passages, device=device)

    def candidates(self, queries: Floats, width: int) -> Indices:
        """Row numbers [Q, width] for queries [Q, D], in no order that counts; ``width`` is at most M."""
        if self._on_device is not None:
            return tiled_candidates(torch.tensor(queries, device=self._on_device.device), self._on_device, width)
        assert self._faiss is not None
        # What IndexFlatIP runs, on the array itself: an index would copy it.
        metric = self._faiss.METRIC_INNER_PRODUCT
        return self._faiss.knn(queries, self._on_cpu, width, metric=metric)[1]


def tiled_candidates(queries: torch.Tensor, passages: torch.Tensor, width: int) -> Indices:
    """The same on the tensors' device: scores of one tile of passages at a time, waited for once, at the end."""
    size = max(width, TILE_BYTES // (4 * len(queries)))
    scores = torch.empty((len(queries), 0), device=queries.device)
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(passages), size):
        tile = queries @ passages[start : start + size].T
        best, places = tile.topk(min(width, tile.shape[1]), sorted=False)
        scores, rows = torch.hstack([scores, best]), torch.hstack([rows, places + start])
        if scores.shape[1] > width:
            scores, kept = scores.topk(width, sorted=False)
            rows = rows.gather(1, kept)
    return rows.cpu().numpy()


def import_faiss() -> Any:
    """The module; UserError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"this needs faiss ({error}): pip install 'fastdense[retrieval]'") from None
    return faiss
