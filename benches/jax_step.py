"""The JAX driver's training step: examples per second, memory and compile time, plain and with the gradient cache.

    python -m benches jax_step --devices 8 --batch 64 256

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
    """Print and return a line for the plain and one for the cached step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fastdense.jax.mesh import divide_rows, make_mesh, replicate
    from fastdense.jax.train_step import GradientStep, Moment, StepSettings, Tally

    mesh, encoder = make_mesh(), make_encoder(SIZES[arguments.size])
    params, inputs = replicate(encoder.params, mesh), divide_rows(make_batch(batch), mesh)
    zero = np.float32(0)

    def moment() -> Moment:
        return Moment(seed=np.uint32(0), step=np.int32(0), part=np.int32(0), share=np.float32(1))

    programs, lines = {}, {}
    for name, rows in (("plain", None), ("grad_cache", tuple(arguments.chunk))):
        step = GradientStep(encoder, StepSettings(scale=1.0, chunk_rows=rows), mesh)
        tally = replicate(Tally(zero, zero), mesh)
        started = time.perf_counter()
        jax.block_until_ready(step(params, inputs, moment(), tally, None))
        lines[name] = {"step": name, "devices": mesh.size, "queries": batch, "passages": 2 * batch}
        lines[name]["first_step_seconds"] = round(time.perf_counter() - started, 1)
        programs[name] = step
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(arguments.rounds):
        for name, step in programs.items():
            tally = replicate(Tally(jnp.zeros(()), jnp.zeros(())), mesh)
            started = time.perf_counter()
            jax.block_until_ready(step(params, inputs, moment(), tally, None))
            times[name].append(time.perf_counter() - started)
    for name, line in lines.items():
        line["examples_per_second"] = round(batch / statistics.median(times[name]), 2)
        print(json.dumps(line), flush=True)
    return list(lines.values())


def make_encoder(size: tuple[int, ...]) -> Any:
    from transformers import BertConfig, BertModel

    from fastdense.jax.encoder import JaxRetriever
    from fastdense.modeling.encoder import Encoder, Retriever

    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    encoder = Encoder(BertModel(BertConfig(**dict(zip(names, size, strict=True)))), "cls")
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
