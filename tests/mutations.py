"""Break the loss in one place after the other, and see a test fail each time.

    python tests/mutations.py            # every mutation, some ten minutes
    python tests/mutations.py --only offset

Works in this checkout, which must have no uncommitted changes under csrc and fastdense, and puts everything back. A
mutation that no test notices is named, and the exit status is 1.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SEMANTICS = "tests/loss/test_semantics.py"
ACCURACY = "tests/loss/test_accuracy.py"
CHUNKS = "tests/loss/test_chunks.py"
NATIVE = "tests/loss/test_native.py"
JAX_LOSS = "tests/jax/test_loss.py"


class Mutation(NamedTuple):
    """One change, and the tests that must notice it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "native: offset of far rows",
        "csrc/cpu/chunk.cpp",
        "    reference_[i] += largest;",
        "    (void)largest;",
        (ACCURACY,),
    ),
    Mutation(
        "native: mask of the target",
        "csrc/cpu/products.cpp",
        "    block.scores[column * kPanel + i] = kLeftOut;",
        "",
        (ACCURACY,),
    ),
    Mutation(
        "native: mask by passage_id",
        "csrc/cpu/products.cpp",
        "  if (problem_.passage_id) {\n    kernels_.leave",
        "  if (problem_.passage_id && block.panel < 0) {\n    kernels_.leave",
        (SEMANTICS,),
    ),
    Mutation(
        "native: tail of the rows",
        "csrc/cpu/products.cpp",
        "i += depth) {\n        const void* values[2]",
        "i += depth) {\n        if (i + 1 == count_) continue;\n        const void* values[2]",
        (ACCURACY,),
    ),
    Mutation(
        "native: tail of the columns",
        "csrc/cpu/products.cpp",
        "    kernels_.multiply_blocks(block.count,\n",
        "    kernels_.multiply_blocks(block.count / 8 * 8,\n",
        (ACCURACY,),
    ),
    Mutation(
        "native: short chains",
        "csrc/cpu/products.cpp",
        "constexpr int64_t kChainUnits = 128;",
        "constexpr int64_t kChainUnits = 1 << 20;",
        (ACCURACY,),
    ),
    Mutation(
        "native: blocks of few passages",
        "csrc/cpu/products.cpp",
        "target_[i] / block_columns_]++",
        "target_[i] / kColumnBlock]++",
        (ACCURACY,),
    ),
    Mutation(
        "native: few queries, tail of the width",
        "csrc/cpu/gemm/few.inc",
        "      for (int64_t rest = d; rest < end; ++rest) sum += passages[j][rest] * queries[i][rest];\n",
        "",
        (ACCURACY,),
    ),
    Mutation(
        "native: few queries, last passages",
        "csrc/cpu/gemm/few.inc",
        "  for (; j < rows; ++j) work(Rows<1>{}, j);\n",
        "",
        (ACCURACY,),
    ),
    Mutation(
        "native: few queries, parts of the width",
        "csrc/cpu/few_queries.cpp",
        "count_ + i * size",
        "count_ + i * width",
        (NATIVE,),
    ),
    Mutation(
        "native: few queries, the second panel",
        "csrc/cpu/few_queries.cpp",
        "accumulate || panel > 0",
        "accumulate",
        (SEMANTICS,),
    ),
    Mutation(
        "native: few queries, the second chunk",
        "csrc/cpu/few_queries.cpp",
        "accumulate || panel > 0",
        "panel > 0",
        (SEMANTICS,),
    ),
    Mutation(
        "reference: mask by passage_id",
        "fastdense/loss/implementations/reference.py",
        "    if passage_id is None:\n",
        "    if passage_id is not None or passage_id is None:\n",
        (SEMANTICS,),
    ),
    Mutation(
        "reference: mask of the target",
        "fastdense/loss/implementations/reference.py",
        "negatives = scores.scatter(1, label, -torch.inf)",
        "negatives = scores",
        (SEMANTICS,),
    ),
    Mutation(
        "triton: offset's reach",
        "fastdense/loss/offsets.py",
        "2 * REACH)",
        "20 * REACH)",
        ("tests/loss/test_triton.py",),
    ),
    Mutation(
        "triton: offset without a maximum",
        "fastdense/loss/offsets.py",
        "    largest = maxima.amax(0)\n",
        "    largest = maxima[0]\n",
        ("tests/loss/test_triton.py",),
    ),
    Mutation(
        "triton: mask by passage_id",
        "fastdense/loss/implementations/triton/kernels.py",
        "in_columns & (of_column[None, :] != target_label[:, None])",
        "in_columns & (of_column[None, :] == of_column[None, :])",
        ("tests/loss/test_triton.py",),
    ),
    Mutation(
        "triton: tail of the columns",
        "fastdense/loss/implementations/triton/kernels.py",
        "    in_columns = (column < columns)[None, :]\n",
        "    in_columns = (column < 2 * columns)[None, :]\n",
        ("tests/loss/test_triton.py",),
    ),
    Mutation(
        "triton: no masks where a target is",
        "fastdense/loss/implementations/triton/kernels.py",
        " & (not holds_target)\n",
        "\n",
        ("tests/loss/test_triton.py",),
    ),
    Mutation(
        "jax: offset",
        "fastdense/jax/loss_chunks.py",
        "    top = jnp.where(negative, score, NOTHING).max(1)",
        "    top = jnp.zeros(len(score), score.dtype)",
        (JAX_LOSS,),
    ),
    Mutation(
        "jax: padding of the columns",
        "fastdense/jax/loss_problem.py",
        "return jnp.where(is_passage, jnp.arange",
        "return jnp.where(is_passage | True, jnp.arange",
        (JAX_LOSS, "tests/jax/test_loss_padding.py"),
    ),
    Mutation(
        "pallas: offset",
        "fastdense/jax/pallas.py",
        "    top = jnp.maximum(before, jnp.where(negative, score, NOTHING).max(1, keepdims=True))",
        "    top = before * 0",
        ("tests/jax/test_pallas.py",),
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name contains this")
    arguments = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if arguments.only in mutation.name]
    if run("git", "diff", "--quiet", "HEAD", "--", "csrc", "fastdense"):
        raise SystemExit("csrc or fastdense differ from the last commit: commit first")
    for mutation in chosen:
        if not applies(mutation):
            raise SystemExit(f"{mutation.name}: {mutation.file} no longer has {mutation.old!r} once")
    missed = [mutation.name for mutation in chosen if not noticed(mutation)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mutations were noticed")
    raise SystemExit(f"not noticed: {', '.join(missed)}" if missed else 0)


def applies(mutation: Mutation) -> bool:
    """Whether its file still has what it changes, once."""
    return (ROOT / mutation.file).read_text().count(mutation.old) == 1


def noticed(mutation: Mutation) -> bool:
    """Whether a test fails with it."""
    file = ROOT / mutation.file
    sound = file.read_text()
    try:
        file.write_text(sound.replace(mutation.old, mutation.new))
        build(mutation)
        failed = run(sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-m", "not slow", *mutation.tests) == 1
    finally:
        file.write_text(sound)
        build(mutation)
    print(f"{mutation.name}: {'noticed' if failed else 'NOT NOTICED'}", flush=True)
    return failed


def build(mutation: Mutation) -> None:
    if mutation.file.startswith("csrc/") and run(
        sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."
    ):
        raise SystemExit(f"{mutation.name}: does not build")


def run(*command: str) -> int:
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode


if __name__ == "__main__":
    main()
