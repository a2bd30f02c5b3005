"""Time a linear layer's three float32 products on a CPU: torch's own library against oneDNN.

python -m benches linears --threads 2

The shapes are those of a MiniLM and of a BERT-base layer; medians of runs that take turns.
"""

import argparse
import statistics
import time

import torch

from benches.machine import device_name
from fastdense.training.linears import Ways, products

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))


def median_seconds(ways: Ways, repeats: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first one warms up
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{device_name('cpu')}, torch {torch.__version__}, {arguments.threads} threads, {arguments.tokens} tokens")
    for inner, outer in SHAPES:
        for name, ways in products(arguments.tokens, inner, outer).items():
            expected, found = (way() for way in ways.values())
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
            seconds = median_seconds(ways, arguments.repeats)
            times = ", ".join(f"{library} {1e3 * own:.2f} ms" for library, own in seconds.items())
            print(f"  {inner:4} x {outer:4} {name:18} {times}: oneDNN {seconds['torch'] / seconds['oneDNN']:.2f} x")


if __name__ == "__main__":
    main()
