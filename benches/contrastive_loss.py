"""Time loss and both gradients: fastdense against other losses and against the three matrix products alone.

    python -m benches contrastive_loss --shape 1024x2048x384 --shape 4096x8192x768 --dtype float32 --threads 2

The providers take turns in one process, so that a busy machine slows all of them; times are medians, of turns of
several calls where one takes less than 2 ms. "x bare" is a provider's time over that of the fastest way to make torch
compute the three products alone; TFLOP/s counts the six N M D operations that loss and gradients need, whoever does
more. A provider whose gradients are wrong shows its error and no time, one that raises shows why; if it is fastdense's,
the others are measured all the same, and the exit status is 1. Peak memory is what a call adds, results included. The
output is written anew after each provider, so that a kernel that never returns takes none of it along.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from benches.machine import device_name, peak_mib
from benches.providers import SCALE, matrix_products, providers
from benches.table import BARE
from fastdense.files import atomic_file

# An error above this is a wrong answer, not rounding. Plain float32 torch has about 1e-4 where the loss is small
# (softmax - 1 cancels at the target); bfloat16 gradients are rounded to bfloat16.
LARGEST_ERROR = {"float32": 1e-2, "bfloat16": 1e-1, "float16": 1e-1}
# Ours accumulate in float32. What is left is one rounding of the gradients (bfloat16 2e-3, float16 1e-3 where they are
# subnormal) and one of the probabilities that a GPU stores (4e-3 and 4e-4).
OWN_LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 1.5e-2, "float16": 5e-3}
SWEEP = [(n, n, 768) for n in (256, 512, 1024, 2048, 4096)]
SAMPLE = 64  # rows of the gradients that are compared with float64
SHORTEST = 2e-3  # seconds; a call that takes less is repeated, and the turn's time is the mean


@dataclass
class Row:
    """One provider's line of the result."""

    provider: str
    error: float | None = None
    median_ms: float | None = None
    best_ms: float | None = None
    over_products: float | None = None
    tflops: float | None = None
    peak_mib: float | None = None
    reason: str | None = None  # why it could not run, or not to the end

    @property
    def own(self) -> bool:
        return self.provider.startswith("fastdense")

    @property
    def failed(self) -> bool:
        return self.own and (self.reason is not None or self.median_ms is None)


def three_products(multiply: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], None]:
    """The products alone, in chunks where all scores would take more than 1 GiB."""

    def run(query: Tensor, passage: Tensor, target: Tensor) -> None:
        rows = max(1, 2**30 // (passage.shape[0] * query.element_size()))
        for chunk in query.split(rows):
            scores = multiply(chunk, passage)
            multiply(scores, passage.T)
            multiply(scores.T, chunk.T)

    return run


def exact_gradients(query: Tensor, passage: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first rows of d loss / d query and of d loss / d passage, in float64 and in chunks of rows."""
    passage_grad = torch.zeros(
        min(SAMPLE, passage.shape[0]), passage.shape[1], dtype=torch.float64, device=query.device
    )
    exact_passage, query_grad = passage.double(), None
    for start in range(0, query.shape[0], 1024):
        chunk = query[start : start + 1024].double()
        gradient = (SCALE * chunk @ exact_passage.T).softmax(1)
        gradient[torch.arange(chunk.shape[0], device=query.device), target[start : start + 1024]] -= 1
        gradient *= SCALE / query.shape[0]
        passage_grad += gradient[:, :SAMPLE].T @ chunk
        if query_grad is None:
            query_grad = gradient[:SAMPLE] @ exact_passage
    assert query_grad is not None
    return query_grad, passage_grad


def error_of(gradients: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """The larger of the two gradients' relative errors."""
    pairs = zip(gradients, exact, strict=True)
    return max(float((grad[:SAMPLE].double() - true).norm() / true.norm()) for grad, true in pairs)


def turn(function: Callable[..., object], calls: int, *inputs: Tensor) -> float:
    """Seconds of one of so many calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function(*inputs)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def draw(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors; the cosine of a query and its target is about 0.3.

    Closer ones make the loss so small that bfloat16's softmax - 1 is noise, and every other provider wrong.
    """
    n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    query, passage = (F.normalize(torch.randn(rows, d, generator=generator), dim=1) for rows in (n, m))
    target = torch.arange(n) * (m // n)
    passage[target] = F.normalize(0.3 * query + 0.95 * passage[target], dim=1)
    return query.to(device, dtype), passage.to(device, dtype), target.to(device)


def measure(
    shape: tuple[int, int, int],
    dtype: str,
    device: str,
    repeats: int,
    only: Sequence[str],
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """A row for each provider; ``keep`` is called with those that there are whenever one has had its first turn.

    That comes right after its check. A kernel that spoils the device for all that follow, or hangs, costs nobody else
    more than the later turns.
    """
    inputs = draw(shape, getattr(torch, dtype), device)
    exact = exact_gradients(*inputs)
    products = matrix_products(device, inputs[0].dtype)
    functions: dict[str, Callable[..., Any]] = {
        f"{BARE}{name}": three_products(multiply) for name, multiply in products.items()
    }
    bare = list(functions)
    rows = {name: Row(name) for name in bare}
    for name in bare:
        functions[name](*inputs)
    seconds = {name: [turn(functions[name], 1, *inputs)] for name in bare}
    operations = 6 * shape[0] * shape[1] * shape[2]
    for name, function in providers(device, inputs[0].dtype, only).items():
        rows[name], functions[name] = Row(name), function
        with _noting(rows[name]):
            if _is_right(rows[name], function, inputs, exact, dtype):
                rows[name].peak_mib = peak_mib(partial(function, *inputs), device)
                seconds[name] = [turn(function, 1, *inputs)]
        _fill_in(rows, seconds, bare, operations)
        keep(list(rows.values()))
    for _ in range(repeats - 1):
        for name, samples in seconds.items():
            if rows[name].reason is None and not _hopeless(seconds, name):
                with _noting(rows[name]):
                    calls = max(1, int(SHORTEST / samples[0]))  # the first turn tells how many
                    samples.append(turn(functions[name], calls, *inputs))
    _fill_in(rows, seconds, bare, operations)
    return list(rows.values())


@contextmanager
def _noting(row: Row) -> Iterator[None]:
    """Whatever is raised, by a peer's kernels for what they cannot do, say, becomes the row's reason."""
    try:
        yield
    except Exception as reason:
        row.reason = str(reason).strip().partition("\n")[0] or repr(reason)
        if row.own:
            traceback.print_exc()


def _is_right(
    row: Row,
    function: Callable[..., tuple[Tensor, Tensor]],
    inputs: tuple[Tensor, Tensor, Tensor],
    exact: tuple[Tensor, Tensor],
    dtype: str,
) -> bool:
    row.error = error_of(function(*inputs), exact)
    return row.error <= (OWN_LARGEST_ERROR if row.own else LARGEST_ERROR)[dtype]


def _fill_in(rows: dict[str, Row], seconds: dict[str, list[float]], bare: Sequence[str], operations: int) -> None:
    """What follows from the seconds that there are."""
    products = min(statistics.median(seconds[name]) for name in bare)
    for name, samples in seconds.items():
        median = statistics.median(samples)
        rows[name].median_ms, rows[name].best_ms = median * 1e3, min(samples) * 1e3
        rows[name].over_products = median / products
        rows[name].tflops = operations / median / 1e12


def _hopeless(seconds: dict[str, list[float]], name: str) -> bool:
    """One turn is enough for a provider ten times slower than another, as bfloat16 is without instructions for it."""
    first = {other: samples[0] for other, samples in seconds.items() if samples}
    return name in first and first[name] > 10 * min(first.values())


def show(row: Row) -> str:
    if row.median_ms is None:
        return f"  {row.provider:26} {_why_untimed(row)}"
    peak = "" if row.peak_mib is None else f"{row.peak_mib:8.0f} MiB"
    error = "" if row.error is None else f"   error {row.error:.1e}"
    return (
        f"  {row.provider:26} {row.median_ms:10.3f} ms {row.over_products:6.2f} x bare {row.tflops:8.3f} TFLOP/s"
        f" {peak:>12}{error}{'' if row.reason is None else f'   then: {row.reason}'}"
    )


def _why_untimed(row: Row) -> str:
    return f"wrong: error {row.error:.1e}" if row.reason is None else f"cannot: {row.reason}"


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
    parser.add_argument("--only", action="append", default=[], help="providers whose name contains this; repeatable")
    parser.add_argument("--sweep", action="store_true", help="also as many queries as passages, 256 to 4096, width 768")
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results: list[dict[str, Any]] = []
    failed = []
    shapes = [*(arguments.shape or []), *(SWEEP if arguments.sweep else [])]
    for shape in shapes or [(32, 64, 768), (1024, 2048, 384)]:
        print(f"{'x'.join(map(str, shape))} {arguments.dtype}, {arguments.threads} threads", flush=True)
        results.append({"shape": shape, "rows": []})
        try:
            rows = measure(
                shape, arguments.dtype, arguments.device, arguments.repeats, arguments.only,
                partial(keep, arguments, results),
            )  # fmt: skip
        except Exception:  # a device that an earlier shape has spoilt, or too little memory for this one's inputs
            traceback.print_exc()
            failed.append(f"all at {shape}")
            continue
        keep(arguments, results, rows)
        print("\n".join(map(show, rows)), flush=True)
        failed += [f"{row.provider} at {shape} ({_why_untimed(row)})" for row in rows if row.failed]
    if failed:
        sys.exit(f"contrastive_loss: failed: {'; '.join(failed)}")


def keep(arguments: argparse.Namespace, results: list[dict[str, Any]], rows: list[Row]) -> None:
    """Make ``rows`` the last shape's, and write the file that is asked for anew: whole, whenever the bench ends."""
    results[-1]["rows"] = [asdict(row) for row in rows]
    if arguments.output:
        asked = ("threads", "device", "dtype", "repeats")
        report = {
            "torch": torch.__version__,
            "machine": device_name(arguments.device),
            **{name: getattr(arguments, name) for name in asked},
            "results": results,
        }
        with atomic_file(arguments.output) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
