"""Search a generated corpus, shard by shard from the disk: seconds, and the memory that is not the file cache's.

    python -m benches search --passages 1000000 --width 768 --queries 128 --depth 100 --threads 2 --output here.json

The shards (``.npy``, mapped) lie in ``--directory`` while it runs: 4 * passages * width bytes. `python -m
fastdense.search` is started on them as a user would. Each query is a passage with noise, so what must be found first is
known, and a search that misses one is an error. "peak_anonymous_mib" is all memory of that process that no file stands
behind, libraries included; pages of the mapped files come on top, and are given back when the system needs them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.machine import device_name, resident_kib
from fastdense.retrieval.rankings import read_run
from fastdense.retrieval.representations import Representations, shard_paths, write_representations, write_windows

WINDOW = 10_000  # passages generated at a time


def write_corpus(directory: Path, passages: int, width: int, shards: int, queries: int) -> Representations:
    """Shards of random unit vectors; returns queries that are evenly spread passages with noise, named as those are."""
    random = np.random.default_rng(0)
    asked = set(np.linspace(0, passages - 1, queries).astype(int).tolist())
    ids, vectors = [], []

    def windows(start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, WINDOW):
            rows = random.standard_normal((min(WINDOW, stop - first), width), dtype=np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            for row in sorted(asked.intersection(range(first, first + len(rows)))):
                noise = random.standard_normal(width, dtype=np.float32) / width**0.5
                ids.append(str(row))
                vectors.append(rows[row - first] + noise / 2)
            yield rows

    ends = np.linspace(0, passages, shards + 1).astype(int).tolist()
    for path, start, stop in zip(shard_paths(directory / "corpus.npy", shards), ends, ends[1:], strict=False):
        write_windows(path, [str(row) for row in range(start, stop)], windows(start, stop))
    return Representations(ids, np.stack(vectors))


def measure(directory: Path, queries: Representations, depth: int, threads: int) -> dict[str, Any]:
    """The command over the shards ``corpus-*`` of a directory, from its start to its end."""
    write_representations(directory / "queries.npy", queries)
    ranking = directory / "ranking.txt"
    files = ["--query_reps", directory / "queries.npy", "--passage_reps", directory / "corpus-*.npy"]
    command = [sys.executable, "-m", "fastdense.search", *files, "--save_ranking_to", ranking, "--save_text"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start, start_cpu = time.perf_counter(), children_cpu_seconds()
    with subprocess.Popen([*map(str, command), "--depth", str(depth)], env=environment) as process:
        peak = peak_anonymous_mib(process)
    if process.returncode:
        raise SystemExit(f"the search failed with exit status {process.returncode}")
    seconds, cpu = time.perf_counter() - start, children_cpu_seconds() - start_cpu
    run = read_run(ranking)
    missed = [query for query, found in run.items() if found.passage_ids[0] != query]
    if missed or len(run) != len(queries.ids):
        raise SystemExit(f"the search is wrong: {len(missed)} of {len(queries.ids)} queries miss their passage")
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_anonymous_mib": round(peak)}


def peak_anonymous_mib(process: subprocess.Popen[bytes]) -> float:
    """MiB of memory of a process that no file stands behind, at its peak, looked at every 20 ms until it ends."""
    peak = 0
    while process.poll() is None:
        try:
            peak = max(peak, resident_kib("RssAnon", process.pid))
        except (OSError, StopIteration):
            break  # it is ending, and has no memory any more
        time.sleep(0.02)
    process.wait()
    return peak / 1024


def children_cpu_seconds() -> float:
    """Of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"passages": 1_000_000, "width": 768, "queries": 128, "depth": 100, "shards": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--directory", help="where the corpus lies for the while; the system's temporary one if absent")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        queries = write_corpus(Path(folder), args.passages, args.width, args.shards, args.queries)
        report = {
            "device": device_name("cpu"),
            **{name: getattr(args, name) for name in ("passages", "width", "queries", "depth", "shards", "threads")},
            "vectors_mib": round(4 * args.passages * args.width / 2**20),
            **measure(Path(folder), queries, args.depth, args.threads),
        }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
