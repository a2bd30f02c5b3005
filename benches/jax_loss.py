"""Loss and both gradients in JAX: fastdense against plain jnp, optax's loss, and a rematerialized scan over rows.

    python -m benches jax_loss --shapes 1024x2048x384 4096x8192x768

Every provider is compiled once for a shape, checked against float64, then timed in rotation; medians. ``temp`` is what
XLA says the program needs beside inputs and outputs. One whose gradients are wrong shows its error and no time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benches.machine import device_name
from fastdense.jax.loss import contrastive_loss

Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
SCALE = 20.0
WRONG = 1e-2  # relative error of the gradients


def _scores(query: jax.Array, passage: jax.Array) -> jax.Array:
    product = jnp.matmul(query, passage.T, precision="highest", preferred_element_type=jnp.float32)
    return SCALE * product


def plain(query: jax.Array, passage: jax.Array, target: jax.Array) -> jax.Array:
    scores = _scores(query, passage)
    own = jnp.take_along_axis(scores, target[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(scores, axis=1) - own).mean()


def with_optax(query: jax.Array, passage: jax.Array, target: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(_scores(query, passage), target).mean()


def scan(query: jax.Array, passage: jax.Array, target: jax.Array, rows: int = 128) -> jax.Array:
    @jax.checkpoint
    def chunk(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + with_optax(part[0], passage, part[1]) * rows, None

    parts = query.reshape(-1, rows, query.shape[1]), target.reshape(-1, rows)
    return jax.lax.scan(chunk, jnp.zeros(()), parts)[0] / len(query)


def fused(query: jax.Array, passage: jax.Array, target: jax.Array) -> jax.Array:
    return contrastive_loss(query, passage, target, scale=SCALE)


PROVIDERS: dict[str, Loss] = {"fastdense": fused, "jnp": plain, "optax": with_optax, "scan": scan}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches jax_loss", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["1024x2048x384", "4096x8192x768"], help="NxMxD, N of 128s")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    lines = []
    for shape in arguments.shapes:
        lines += measure(tuple(map(int, shape.split("x"))), jnp.dtype(arguments.dtype), arguments.rounds)
    if arguments.json is not None:
        device = jax.devices()[0]
        name = device_name("cpu") if device.platform == "cpu" else device.device_kind
        content = {"device": name, "jax": jax.__version__, "dtype": arguments.dtype, "lines": lines}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def measure(shape: Sequence[int], dtype: Any, rounds: int) -> list[dict[str, Any]]:
    """Print and return a line for each provider."""
    rows, columns, width = shape
    inputs = make_inputs(rows, columns, width, dtype)
    expected = exact_gradients(*map(np.asarray, inputs))
    programs, lines = {}, {}
    for name, loss in PROVIDERS.items():
        started = time.perf_counter()
        programs[name] = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs).compile()
        needs: Any = programs[name].memory_analysis()
        lines[name] = {
            "shape": "x".join(map(str, shape)),
            "provider": name,
            "compile_seconds": round(time.perf_counter() - started, 2),
            "temp_mib": round(needs.temp_size_in_bytes / 2**20, 1),
            "gradient_error": float(f"{error(programs[name](*inputs), expected):.2g}"),
        }
    right = [name for name, line in lines.items() if line["gradient_error"] < WRONG]
    times: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(rounds):
        for name in right:
            started = time.perf_counter()
            jax.block_until_ready(programs[name](*inputs))
            times[name].append(time.perf_counter() - started)
    for name, line in lines.items():
        line["median_ms"] = round(1000 * statistics.median(times[name]), 2) if name in right else None
        print(json.dumps(line), flush=True)
    return list(lines.values())


def make_inputs(rows: int, columns: int, width: int, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unit vectors; each query's target has a cosine of about 0.3 with it."""
    random = np.random.default_rng(0)
    target = np.arange(rows) * (columns // rows)
    passage = random.standard_normal((columns, width))
    query = random.standard_normal((rows, width)) + 0.3 * passage[target]
    unit = [array / np.linalg.norm(array, axis=1, keepdims=True) for array in (query, passage)]
    return jnp.asarray(unit[0], dtype), jnp.asarray(unit[1], dtype), jnp.asarray(target, jnp.int32)


def exact_gradients(query: Any, passage: Any, target: Any) -> list[Any]:
    """In float64, row chunk by row chunk."""
    query, passage = query.astype(np.float64), passage.astype(np.float64)
    query_grad, passage_grad = np.empty_like(query), np.zeros_like(passage)
    for start in range(0, len(query), 256):
        part = slice(start, start + 256)
        scores = SCALE * query[part] @ passage.T
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(shares)), target[part]] -= 1
        shares *= SCALE / len(query)
        query_grad[part] = shares @ passage
        passage_grad += shares.T @ query[part]
    return [query_grad, passage_grad]


def error(gradients: Any, expected: list[Any]) -> float:
    """The larger relative norm of the two."""
    pairs = zip(gradients, expected, strict=True)
    return max(
        float(np.linalg.norm(np.asarray(ours, np.float64) - exact) / np.linalg.norm(exact)) for ours, exact in pairs
    )


if __name__ == "__main__":
    main()
