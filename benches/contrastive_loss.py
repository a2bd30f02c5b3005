"""Time loss and both gradients: fastdense against plain torch and against the three matrix products alone.

    python benches/contrastive_loss.py --shape 1024x2048x384 --shape 4096x8192x768 --dtype float32 --threads 2

The providers take turns in one process, so that a busy machine slows all of them; times are medians. A provider whose
gradients are wrong shows its error and no time.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdense

SCALE = 20.0
# An error above this is a wrong answer, not rounding. Plain float32 torch has about 1e-4 where the loss is small
# (softmax - 1 cancels at the target); bfloat16 gradients are rounded to bfloat16.
LARGEST_ERROR = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 1e-1}
Gradients = tuple[Tensor, Tensor]


@dataclass
class Row:
    """One provider's line of the result."""

    provider: str
    error: float
    median_ms: float | None = None
    over_products: float | None = None
    tflops: float | None = None


def naive(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
    query, passage = query.detach().requires_grad_(), passage.detach().requires_grad_()
    F.cross_entropy(SCALE * query @ passage.T, target).backward()
    assert query.grad is not None
    assert passage.grad is not None
    return query.grad, passage.grad


def one_pass(implementation: str) -> Callable[[Tensor, Tensor, Tensor], Gradients]:
    def run(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
        result = fastdense.contrastive_loss_and_grad(query, passage, target, scale=SCALE, implementation=implementation)
        return result.query_grad, result.passage_grad

    return run


def three_products(query: Tensor, passage: Tensor, target: Tensor) -> None:
    scores = query @ passage.T
    _ = scores @ passage
    _ = scores.T @ query


def providers(device: str, dtype: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Gradients]]:
    """Plain torch, and those implementations that can run there."""
    report = fastdense.backends(device, getattr(torch, dtype))
    names = [name for name, state in report.items() if state == "available"]
    return {"naive": naive} | {f"fastdense {name}": one_pass(name) for name in names}


def exact_query_grad(query: Tensor, passage: Tensor, target: Tensor) -> Tensor:
    """The first 64 rows of d loss / d query in float64."""
    rows = slice(0, min(64, query.shape[0]))
    probability = (SCALE * query[rows].double() @ passage.double().T).softmax(1)
    probability[torch.arange(rows.stop), target[rows]] -= 1
    return SCALE * probability @ passage.double() / query.shape[0]


def once(function: Callable[..., object], *inputs: Tensor) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int], dtype: str, device: str, repeats: int) -> list[Row]:
    n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    query, passage = (F.normalize(torch.randn(rows, d, generator=generator), dim=1) for rows in (n, m))
    target = torch.arange(n) * (m // n)
    passage[target] = F.normalize(0.7 * query + 0.71 * passage[target], dim=1)
    inputs = query.to(device, getattr(torch, dtype)), passage.to(device, getattr(torch, dtype)), target.to(device)

    exact = exact_query_grad(*inputs)
    rows, functions = {}, {}
    for name, function in providers(device, dtype).items():
        error = float((function(*inputs)[0][:64].double() - exact).norm() / exact.norm())
        rows[name] = Row(name, error)
        if error <= LARGEST_ERROR[dtype]:
            functions[name] = function
    timed = {"three products": three_products, **functions}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, function in timed.items():
            seconds[name].append(once(function, *inputs))
    products = statistics.median(seconds["three products"])
    rows["three products"] = Row("three products", 0.0)
    for name, samples in seconds.items():
        median = statistics.median(samples)
        rows[name].median_ms = median * 1e3
        rows[name].over_products = median / products
        rows[name].tflops = 6 * n * m * d / median / 1e12
    return list(rows.values())


def shape_of(text: str) -> tuple[int, int, int]:
    n, m, d = (int(part) for part in text.split("x"))
    return n, m, d


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape_of, action="append", help="NxMxD; may be given several times")
    parser.add_argument("--dtype", choices=sorted(LARGEST_ERROR), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = []
    for shape in arguments.shape or [(32, 64, 768), (1024, 2048, 384)]:
        rows = measure(shape, arguments.dtype, arguments.device, arguments.repeats)
        print(f"{'x'.join(map(str, shape))} {arguments.dtype}, {arguments.threads} threads")
        for row in rows:
            timing = f"{row.median_ms:10.2f} ms {row.over_products:6.2f} x" if row.median_ms else "      wrong answer"
            print(f"  {row.provider:20} {timing}   error {row.error:.1e}")
        results.append({"shape": shape, "rows": [vars(row) for row in rows]})
    if arguments.output:
        facts = {"torch": torch.__version__, "machine": platform.machine(), "threads": arguments.threads}
        report = {**facts, "device": arguments.device, "dtype": arguments.dtype, "results": results}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
