"""The loss over more scores than any memory holds: 2 TiB of them in bfloat16.

    python -m benches gpu_large --output benches/results/large.json

6 N M D is 5.1e15 operations at a million queries and passages, ten seconds at 500 TFLOP/s. A smaller size comes first,
and the larger one only where that leaves time for it. The output is written after each.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdense import contrastive_loss_and_grad
from fastdense.files import atomic_file

SIZES = (2**18, 2**20)
WIDTH = 768
SCALE = 20.0
MOST_SECONDS = 25


def unit_vectors(rows: int) -> Tensor:
    """In bfloat16, and drawn in parts: in float32 they would take as much memory as the loss."""
    parts = (torch.randn(2**16, WIDTH, device="cuda") for _ in range(rows // 2**16))
    return torch.cat([normalize(part, dim=1).bfloat16() for part in parts])


def loss(query: Tensor, passage: Tensor) -> Any:
    return contrastive_loss_and_grad(query, passage, scale=SCALE, implementation="triton", chunk_bytes=2**33)


def measure(size: int) -> dict[str, Any]:
    query, passage = unit_vectors(size), unit_vectors(size)
    loss(query[: 2**13], passage[: 2**13])  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    result = loss(query, passage)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {
        "N": size,
        "M": size,
        "D": WIDTH,
        "dtype": "bfloat16",
        "seconds": seconds,
        "tflops": 6 * size**2 * WIDTH / seconds / 1e12,
        "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
        "loss": result.loss.item(),
        # A row's scores are N(0, SCALE^2 / WIDTH): what the loss of unrelated vectors must be.
        "expected_loss": torch.tensor(float(size)).log().item() + SCALE**2 / WIDTH / 2,
        "finite": all(bool(gradient.isfinite().all()) for gradient in (result.query_grad, result.passage_grad)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="write the result there as JSON")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    for size in SIZES:
        if found and found[-1]["seconds"] * (size / found[-1]["N"]) ** 2 > MOST_SECONDS:
            break
        found.append(measure(size))
        print(found[-1], flush=True)
        with atomic_file(arguments.output) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
        torch.cuda.empty_cache()
    wrong = [one["N"] for one in found if not (one["finite"] and abs(one["loss"] - one["expected_loss"]) < 0.01)]
    if wrong:
        raise SystemExit(f"gpu_large: wrong loss, or gradients that are not finite, at {wrong}")


if __name__ == "__main__":
    main()
