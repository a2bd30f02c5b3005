"""Compile the JAX driver's whole training step for a TPU that is not there, and read the memory it would take.

    python -m benches tpu_compile --topology v3:2x2 --model base --batch 128 4096

Needs ``pip install "fastdense[tpu]"``, whose compiler knows every TPU by its topology: v3:2x2 is a V3-8. Nothing runs.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

# Before libtpu is loaded: it looks for a TPU, in the cloud's metadata too, and speaks of what it does not find.
QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
MODELS = {"tiny": (128, 1, 2, 256, 1000), "base": (768, 12, 12, 3072, 30522)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches tpu_compile", description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v3:2x2", help="v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1 or v6e:2x4")
    parser.add_argument("--model", choices=MODELS, default="tiny", help="a BERT of this size, with random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[128], help="queries on all devices; 2 passages each")
    parser.add_argument("--chunk", type=int, nargs=2, default=(4, 32), help="rows of --grad_cache; 0 0 for none")
    parser.add_argument("--length", type=int, nargs=2, default=(32, 156), help="tokens of a query and of a passage")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    arguments = parser.parse_args()
    _deepen_the_stack()
    os.environ.update(QUIET)
    lines = [measure(arguments, batch) for batch in arguments.batch]
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


def _deepen_the_stack() -> None:
    """Some compilers need more stack than processes get; the limit holds for processes begun under it."""
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if os.environ.get("FASTDENSE_DEEP_STACK") is None:
        resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
        os.environ["FASTDENSE_DEEP_STACK"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "benches", "tpu_compile", *sys.argv[1:]])


def measure(arguments: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Compile the step for one global batch and print what it takes."""
    compiled, seconds, kind = compile_step(arguments, batch)
    memory = compiled.memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    line = {
        "topology": arguments.topology,
        "device": kind,
        "model": arguments.model,
        "dtype": arguments.dtype,
        "queries": batch,
        "passages": 2 * batch,
        "tokens": list(arguments.length),
        "chunk_rows": list(arguments.chunk) if arguments.chunk[0] else None,
        "device_mib": round((total - memory.alias_size_in_bytes) / 2**20),
        "temporary_mib": round(memory.temp_size_in_bytes / 2**20),
        "compile_seconds": round(seconds, 1),
    }
    print(json.dumps(line), flush=True)
    return line


def compile_step(arguments: argparse.Namespace, batch: int) -> tuple[Any, float, str]:
    """The compiled step, the time it took to compile, and the devices' kind."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding

    from fastdense.jax.batches import Batch
    from fastdense.jax.mesh import ROWS, WHOLE, make_mesh
    from fastdense.jax.train_step import GradientStep, Moment, StepSettings, Tally

    mesh = make_mesh(topologies.get_topology_desc(platform="tpu", topology_name=arguments.topology).devices)

    def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, ROWS))

    def whole(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, WHOLE))

    def side(count: int, length: int) -> dict[str, Any]:
        return {name: rows(count, length) for name in ("input_ids", "attention_mask")}

    encoder = make_encoder(arguments)
    chunk_rows = tuple(arguments.chunk) if arguments.chunk[0] else None
    step = GradientStep(encoder, StepSettings(scale=1.0, chunk_rows=chunk_rows), mesh)
    integer, real = jnp.zeros((), jnp.int32), jnp.zeros(())
    inputs = Batch(
        query=side(batch, arguments.length[0]),
        passage=side(2 * batch, arguments.length[1]),
        target=rows(batch),
        weight=rows(batch, dtype=jnp.float32),
        passage_id=rows(2 * batch, 2),
        is_passage=rows(2 * batch, dtype=jnp.bool_),
    )
    moment, tally = Moment(integer.astype(jnp.uint32), integer, integer, real), Tally(real, real)
    params, moment, tally = jax.tree.map(whole, (encoder.params, moment, tally))
    started = time.perf_counter()
    lowered = step.compiled.trace(params, inputs, moment, tally, params).lower(lowering_platforms=("tpu",))
    return lowered.compile(), time.perf_counter() - started, mesh.devices.flat[0].device_kind


def make_encoder(arguments: argparse.Namespace) -> Any:
    import jax.numpy as jnp
    from transformers import BertConfig, BertModel

    from fastdense.jax.encoder import JaxRetriever
    from fastdense.modeling.encoder import Encoder, Retriever

    hidden, layers, heads, inner, words = MODELS[arguments.model]
    config = BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
    )
    encoder = Encoder(BertModel(config), "cls")
    return JaxRetriever.from_torch(Retriever(encoder, encoder), dtype=jnp.dtype(arguments.dtype))


if __name__ == "__main__":
    main()
