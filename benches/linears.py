"""Time a linear layer's three float32 products on a CPU: torch's own library against oneDNN.

python -m benches linears --threads 2

The shapes are those of a MiniLM and of a BERT-base layer; medians of runs that take turns.
"""

import argparse
import statistics

import torch

from benches.machine import device_name
from fastdense.training.linear_choice import timed
from fastdense.training.linears import products

SHAPES = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))


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
            turns = timed(ways, arguments.repeats, arguments.repeats)
            seconds = {library: statistics.median(own) for library, own in turns.items()}
            times = ", ".join(f"{library} {1e3 * own:.2f} ms" for library, own in seconds.items())
            print(f"  {inner:4} x {outer:4} {name:18} {times}: oneDNN {seconds['torch'] / seconds['oneDNN']:.2f} x")


if __name__ == "__main__":
    main()
