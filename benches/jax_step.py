"""The JAX driver's training step, plain and cached, against the same step with plain jnp, optax's loss and a scan.

    python -m benches jax_step --devices 8 --batch 64 256

Every step is compiled once, then they take turns; medians. ``temp`` is what XLA says a device needs beside inputs and
outputs, ``difference`` the relative norm of a step's gradients less those of the plain jnp step, same dropout.

A BERT-shaped model with random weights and the documented lengths; on a CPU the devices are simulated and share it.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

SIZES = {"small": (384, 6, 12, 1536, 30522), "tiny": (128, 2, 2, 512, 1000)}
LENGTHS = (32, 128)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches jax_step", description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, help="simulate so many on a CPU")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[64, 256], help="queries on all devices; 2 passages each"
    )
    parser.add_argument("--chunk", type=int, nargs=2, default=(4, 32), help="rows of --grad_cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    if arguments.devices:  # before JAX is imported
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={arguments.devices}"
    lines = [line for batch in arguments.batch for line in measure(arguments, batch)]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


def measure(arguments: argparse.Namespace, batch: int) -> list[dict[str, Any]]:
    """Print and return a line for each step."""
    import jax
    import numpy as np

    from fastdense.jax.mesh import divide_rows, make_mesh, replicate
    from fastdense.jax.train_step import Moment, Tally

    mesh, encoder = make_mesh(), make_encoder(SIZES[arguments.size])
    params, inputs = replicate(encoder.params, mesh), divide_rows(make_batch(batch), mesh)
    moment = Moment(seed=np.uint32(0), step=np.int32(0), part=np.int32(0), share=np.float32(1))

    def tally() -> Tally:  # which a step uses up
        return replicate(Tally(np.float32(0), np.float32(0)), mesh)

    def once(program: Any) -> Any:
        return jax.block_until_ready(program(params, inputs, moment, tally(), None))

    programs, lines, gradients = {}, {}, {}
    for name, step in make_steps(encoder, mesh, (arguments.chunk[0], arguments.chunk[1])).items():
        started = time.perf_counter()
        programs[name] = step.compiled.lower(params, inputs, moment, tally(), None).compile()
        lines[name] = {
            "step": name,
            "devices": mesh.size,
            "queries": batch,
            "passages": 2 * batch,
            "compile_seconds": round(time.perf_counter() - started, 1),
            "temp_mib": round(programs[name].memory_analysis().temp_size_in_bytes / 2**20),
        }
        gradients[name] = jax.device_get(once(programs[name])[1])
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.rounds):
        for name, program in programs.items():
            started = time.perf_counter()
            once(program)
            times[name].append(time.perf_counter() - started)
    for name, line in lines.items():
        if not name.endswith("grad_cache"):  # whose chunks draw a dropout of their own
            line["difference"] = float(f"{difference(gradients[name], gradients['jnp']):.1e}")
        line["examples_per_second"] = round(batch / statistics.median(times[name]), 2)
        print(json.dumps(line), flush=True)
    return list(lines.values())


def make_steps(encoder: Any, mesh: Any, chunk: tuple[int, int]) -> dict[str, Any]:
    """fastdense's two steps, and the plain one with each of the losses that a trainer would write otherwise."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from benches.jax_loss import SCALE, plain, scan, with_optax
    from fastdense.jax.mesh import AXIS
    from fastdense.jax.train_step import GradientStep, StepSettings

    class PeerStep(GradientStep):
        """GradientStep with another loss, which JAX differentiates."""

        def __init__(self, loss: Any) -> None:
            self._loss = loss
            super().__init__(encoder, StepSettings(scale=SCALE), mesh)

        def _score(self, query: Any, passage: Any, *, batch: Any, weight: Any, share: Any) -> Any:
            def own_part(query: Any, passage: Any) -> Any:
                return self._loss(query, passage, batch.target) * weight.sum() * share

            everyone = lax.all_gather(passage, AXIS, tiled=True)
            loss, (query_grad, passage_grad) = jax.value_and_grad(own_part, (0, 1))(query, everyone)
            return loss, jnp.zeros(len(query)), (query_grad, lax.psum_scatter(passage_grad, AXIS, tiled=True))

    def scan_over_rows(query: Any, passage: Any, target: Any) -> Any:
        return scan(query, passage, target, rows=min(128, len(query)))

    return {
        "fastdense": GradientStep(encoder, StepSettings(scale=SCALE), mesh),
        "fastdense grad_cache": GradientStep(encoder, StepSettings(scale=SCALE, chunk_rows=chunk), mesh),
        **{name: PeerStep(loss) for name, loss in {"jnp": plain, "optax": with_optax, "scan": scan_over_rows}.items()},
    }


def difference(found: Any, expected: Any) -> float:
    """Relative norm of the difference of two trees."""
    import jax
    import numpy as np

    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    squares = sum(float(np.square(ours - theirs, dtype=np.float64).sum()) for ours, theirs in pairs)
    return (squares / sum(float(np.square(theirs, dtype=np.float64).sum()) for _, theirs in pairs)) ** 0.5


def make_encoder(size: tuple[int, ...]) -> Any:
    from transformers import BertConfig, BertModel

    from fastdense.jax.encoder import JaxRetriever
    from fastdense.modeling.encoder import Encoder, Retriever

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    encoder = Encoder(BertModel(BertConfig(**dict(zip(names, size, strict=True)))), "cls", normalize=True)
    return JaxRetriever.from_torch(Retriever(encoder, encoder))


def make_batch(queries: int) -> Any:
    import numpy as np

    from fastdense.jax.batches import Batch

    random = np.random.default_rng(0)

    def side(rows: int, length: int) -> dict[str, Any]:
        ids = random.integers(1, 1000, (rows, length), dtype=np.int32)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    passages = 2 * queries
    return Batch(
        query=side(queries, LENGTHS[0]),
        passage=side(passages, LENGTHS[1]),
        target=np.arange(queries, dtype=np.int32) * 2,
        weight=np.ones(queries, np.float32),
        passage_id=np.stack([np.arange(passages, dtype=np.int32)] * 2, axis=1),
        is_passage=np.ones(passages, bool),
    )


if __name__ == "__main__":
    main()
