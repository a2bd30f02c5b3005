"""The Pallas kernels: blocks, races, uninitialised memory, and what the TPU's own compiler says of them."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from tpu_compiler import compile_for_tpu

from fastdense.jax import pallas
from fastdense.jax.loss import contrastive_loss, contrastive_loss_and_grad

TPU = SimpleNamespace(platform="tpu", device_kind="TPU v4")


def problem(rows: int, columns: int, dtype: Any = jnp.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    query, passage = (jnp.asarray(rng.standard_normal((n, 16)), dtype) for n in (rows, columns))
    target = rng.integers(0, columns, rows, np.int32)
    return {"query": query, "passage": passage, "target": target, "passage_id": np.arange(columns, dtype=np.int32) % 99}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_ragged_blocks_without_races_or_uninitialised_memory(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Three blocks of queries and of passages, the last ones with padding; memory starts as nan."""
    monkeypatch.setattr(pallas, "INTERPRET", pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True))
    monkeypatch.setattr(pallas, "blocks", lambda width, dtype: (128, 128))
    inputs = problem(261, 300, dtype)
    kernels, plain = (
        jax.jit(lambda form=form: contrastive_loss_and_grad(**inputs, scale=3.0, implementation=form))()
        for form in ("pallas", "xla")
    )
    assert not interpret_pallas_call.races.races_found
    rounding = 1e-5 if dtype == "float32" else 1e-2
    for name, value in kernels._asdict().items():
        expected = np.asarray(getattr(plain, name), np.float32)
        assert np.linalg.norm(np.float32(value) - expected) <= rounding * np.linalg.norm(expected), name


def test_blocks_fit_into_16_mib() -> None:
    """At the widths people have; the compiler's own figures, which these bound, are below."""
    for dtype, least in (("bfloat16", (512, 256)), ("float32", (256, 256))):
        assert pallas.blocks(768, dtype) == least
        assert pallas.blocks(1024, dtype) == (256, 256)
        assert pallas.blocks(3072, dtype) == (128, 128)
        assert pallas.blocks(8192, dtype) is None


def kernels_in(**options: Any) -> tuple[int, int]:
    """How many kernels the program for a TPU has, and how many products XLA makes of its own."""
    rows = jax.ShapeDtypeStruct((300, 96), "float32")

    def loss(query: Any, passage: Any) -> Any:
        return contrastive_loss(query, passage, scale=20.0, device=TPU, **options)

    function = loss if options.get("reduction") == "sum" else jax.grad(loss, (0, 1))
    text = jax.jit(function).trace(rows, rows).lower(lowering_platforms=("tpu",)).as_text()
    return text.count("tpu_custom_call"), text.count("stablehlo.dot_general")


def test_it_lowers_for_a_tpu_without_one() -> None:
    """Two kernels a direction, one where no gradient is wanted; nothing of [N, M] is left to XLA."""
    assert kernels_in() == (2, 0)
    assert kernels_in(symmetric=True, label_smoothing=0.1) == (4, 0)
    assert kernels_in(reduction="sum") == (1, 0)


COMPILE = """
import sys, json, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from fastdense.jax.loss import contrastive_loss_and_grad

rows = PartitionSpec("data")
for dtype, width, queries in json.loads(sys.argv[1]):
    def on_a_device(query, passage, target, ids):
        passage, ids = (jax.lax.all_gather(part, "data", tiled=True) for part in (passage, ids))
        result = contrastive_loss_and_grad(
            query, passage, target, scale=20.0, passage_id=ids, device=mesh.devices.flat[0]
        )
        return result.query_grad, jax.lax.psum_scatter(result.passage_grad, "data", tiled=True)

    step = jax.jit(jax.shard_map(on_a_device, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
    shapes = ((queries, width), dtype), ((2 * queries, width), dtype), ((queries,), "int32"), ((2 * queries,), "int32")
    inputs = [jax.ShapeDtypeStruct(*shape, sharding=NamedSharding(mesh, rows)) for shape in shapes]
    program = step.lower(*inputs).compile()
    print(json.dumps([program.as_text().count("tpu_custom_call"), program.memory_analysis().temp_size_in_bytes]))
"""


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v3:2x2", "v5e:2x4", pytest.param("v6e:2x4", marks=pytest.mark.slow)])
def test_it_compiles_for_a_tpu(topology: str) -> None:
    """Also with bfloat16 on v3, whose matrix unit takes it but not from Mosaic; memory is far below all scores'."""
    queries = 8 * 2048
    cases = [["bfloat16", 128, queries], ["float32", 128, queries]]
    lines = compile_for_tpu(topology, COMPILE, json.dumps(cases)).splitlines()
    for line in lines:
        kernels, memory = json.loads(line)
        assert kernels == 2
        assert memory < queries // 8 * 2 * queries * 4
    assert len(lines) == len(cases)


@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v3:2x2", "v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_every_block_size_compiles(topology: str) -> None:
    cases = [[dtype, width, 4096] for dtype in ("bfloat16", "float32") for width in (32, 768, 1024, 2048, 3072)]
    lines = compile_for_tpu(topology, COMPILE, json.dumps(cases)).splitlines()
    assert [json.loads(line)[0] for line in lines] == [2] * len(cases)
