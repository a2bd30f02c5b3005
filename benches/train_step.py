"""Time a training step, forward, loss and backward: fastdense against other trainers' steps at equal gradients.

    python -m benches train_step --model minilm --batch 256 --n_passages 2 --threads 2
    python -m benches train_step --model minilm --batch 64 256 1024 4096 --repeats 0 --only "fastdense cached"

Same weights, rows, batch, precision and threads; on a CPU what fastdense tells the process's allocator is there for
all of them (without it plain autograd is the slower). The rows are the built-in Python documentation's, and batches are
collated beforehand. First every provider's gradients of a small batch, without dropout, are compared with those of
plain float32 autograd: one that is wrong shows its error and no speed. Then the providers take turns in one process;
"x" is the median over the turns of how many times faster than sentence-transformers' cached loss with its defaults a
provider was. "padding" is the share of padding in what the encoder ran on, "used" what the batch's distinct texts need
of a large bare product's speed (see benches/utilization.py). The peak is what two steps add to a process of their own,
which holds the model, its gradients and the batch already; ``--repeats 0`` measures nothing else,
``--no-memory`` leaves it out.
Providers that keep the activations of the whole batch are left out where these would not fit into memory.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent))
from benches.machine import device_name, peak_mib
from benches.pages import ROOT
from benches.step_inputs import built_in_data, read_examples, write_model
from benches.step_providers import Provider, Providers, Setting
from benches.utilization import encoder_operations, product_rate
from fastdense.data.training_set import Example
from fastdense.grad_cache.memory import activation_bytes, available_bytes

MOST_OF_MEMORY = 0.8  # a backward pass takes some more than what it has been left
# An error above this is a wrong gradient and not rounding.
LARGEST_ERROR = {"float32": 1e-3, "bfloat16": 1e-1}
BASE = "sentence-transformers"


@dataclass
class Row:
    """One provider's line of the result."""

    provider: str
    error: float
    examples_per_second: float | None = None
    times_base: float | None = None
    padding: float | None = None
    used: float | None = None
    peak_mib: float | None = None


class PaddingCounter:
    """Tokens and padding that a backbone is run on."""

    def __init__(self) -> None:
        self.tokens = self.places = 0

    @contextmanager
    def watching(self, backbone: nn.Module) -> Iterator[None]:
        forward = backbone.forward

        @functools.wraps(forward)
        def counted(**inputs: Any) -> Any:
            self._count(inputs["input_ids"], inputs.get("attention_mask"))
            return forward(**inputs)

        backbone.forward = counted  # no hook: sentence-transformers calls forward itself
        yield
        del backbone.forward

    def _count(self, ids: Tensor, mask: Tensor | None) -> None:
        self.places += ids.numel()
        self.tokens += ids.numel() if mask is None else int(mask.sum())

    @property
    def share(self) -> float:
        return 1 - self.tokens / self.places


def gradients(provider: Provider, examples: Sequence[Example]) -> dict[str, Tensor]:
    """The backbone's gradients of a step without dropout."""
    provider.model.eval()
    provider.model.zero_grad()
    provider.step(provider.prepare(examples))
    provider.model.train()
    found = {name: weight.grad for name, weight in provider.backbone.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def error_of(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Relative norm of the difference over all weights; infinite where a gradient is missing."""
    if found.keys() != reference.keys():
        return float("inf")
    squares = torch.stack([(found[name] - true).double().square().sum() for name, true in reference.items()])
    norms = torch.stack([true.double().square().sum() for true in reference.values()])
    return float((squares.sum() / norms.sum()).sqrt())


def activations(provider: Provider, examples: Sequence[Example], device: str) -> float:
    """Bytes that a query and its passages hold until the backward pass, in a provider without a cache."""
    inputs = provider.prepare(examples)
    _graph, size = activation_bytes(lambda: provider.model(query=inputs["query"], passage=inputs["passage"]), device)
    return size / len(examples)


def memory(device: str) -> float:
    """Bytes that are to be had; without end where the system does not say."""
    available = available_bytes(torch.device(device).type)
    return float("inf") if available is None else available


def once(provider: Provider, inputs: Any) -> float:
    """Seconds of one step."""
    provider.model.zero_grad()
    start = time.perf_counter()
    provider.step(inputs)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_times(
    providers: dict[str, Provider], examples: Sequence[Example], rows: dict[str, Row], turns: int
) -> dict[str, float]:
    """Fill in speed and padding, and return the median seconds; a first turn warms up and is not counted."""
    inputs = {name: provider.prepare(examples) for name, provider in providers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for name, provider in providers.items():
        counter = PaddingCounter()
        with counter.watching(provider.backbone):
            once(provider, inputs[name])
        rows[name].padding = counter.share
    for _ in range(turns):
        for name, provider in providers.items():
            seconds[name].append(once(provider, inputs[name]))
    medians = {name: statistics.median(samples) for name, samples in seconds.items()}
    for name, samples in seconds.items():
        rows[name].examples_per_second = len(examples) / medians[name]
        if BASE in seconds:
            ratios = [base / own for base, own in zip(seconds[BASE], samples, strict=True)]
            rows[name].times_base = statistics.median(ratios)
    return medians


def own_peak(provider: Provider, examples: Sequence[Example], device: str) -> float | None:
    """MiB that two steps add to this process; the second one may keep what the first has found to fit."""
    inputs = provider.prepare(examples)
    once(provider, provider.prepare(examples[:2]))  # threads, libraries and gradients are there from now on

    def two_steps() -> None:
        for _ in range(2):
            for weight in provider.model.parameters():
                if weight.grad is not None:
                    weight.grad.zero_()
            provider.step(inputs)

    return peak_mib(two_steps, device)


def peak_in_own_process(name: str, batch: int, prepared: Path) -> float | None:
    """What :func:`own_peak` finds in a fresh process with this one's arguments."""
    command = [sys.executable, "-m", "benches", "train_step", *sys.argv[1:]]
    command += ["--batch", str(batch), "--prepared", str(prepared), "--peak_of", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measuring the memory of {name} at a batch of {batch} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(row: Row) -> str:
    columns = [
        (row.examples_per_second, "{:8.1f} examples/s"),
        (row.times_base, "{:5.2f} x"),
        (row.padding, "{:6.1%} padding"),
        (row.used, "{:6.1%} used"),
        (row.peak_mib, "{:7.0f} MiB"),
    ]
    shown = "".join("  " + form.format(value) for value, form in columns if value is not None)
    return f"  {row.provider:34}{shown}   error {row.error:.1e}"


def compare(arguments: argparse.Namespace, prepared: Path, rows_file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure every batch size; one dictionary each, and the names of the providers that are wrong."""
    workshop = Providers(setting_of(arguments, prepared), arguments.st_tokens)
    names = [name for name in workshop.names if not arguments.only or any(part in name for part in arguments.only)]
    providers = {name: workshop.make(name) for name in names}
    small = examples_of(arguments, prepared, rows_file, arguments.check_batch)
    exact = Setting(**{**asdict(workshop.setting), "dtype": "float32"})
    reference = gradients(Providers(exact, []).make("plain autograd"), small)
    errors = {name: error_of(gradients(provider, small), reference) for name, provider in providers.items()}
    wrong = [name for name in names if not errors[name] <= LARGEST_ERROR[arguments.dtype]]
    for name in wrong:
        print(f"  {name:34}  wrong: error {errors[name]:.1e}")

    results = []
    held = {name: 0 if one.cached else activations(one, small, arguments.device) for name, one in providers.items()}
    rate = product_rate(arguments.device, arguments.dtype) if arguments.repeats else 0.0
    for batch in arguments.batch:
        most = MOST_OF_MEMORY * memory(arguments.device)
        too_large = [name for name in names if held[name] * batch > most]
        chosen = {name: one for name, one in providers.items() if name not in (*wrong, *too_large)}
        rows = {name: Row(name, errors[name]) for name in chosen}
        if arguments.repeats:
            examples = examples_of(arguments, prepared, rows_file, batch)
            seconds = measure_times(chosen, examples, rows, arguments.repeats)
            lengths = workshop.distinct_lengths(examples)
            for name, row in rows.items():
                row.used = encoder_operations(chosen[name].backbone, lengths) / (seconds[name] * rate)
        for name in chosen if arguments.memory else ():
            rows[name].peak_mib = peak_in_own_process(name, batch, prepared)
        print(f"batch {batch}")
        for name in too_large:
            print(f"  {name:34}  not run: the batch's activations take {held[name] * batch / 2**30:.1f} GiB")
        print("\n".join(map(show, rows.values())), flush=True)
        results.append({"batch": batch, "rows": [asdict(row) for row in rows.values()]})
    return results, wrong


def setting_of(arguments: argparse.Namespace, prepared: Path) -> Setting:
    return Setting(
        model=str(prepared / "model"),
        device=arguments.device,
        dtype=arguments.dtype,
        q_max_len=arguments.q_max_len,
        p_max_len=arguments.p_max_len,
        flags=arguments.flags,
    )


def examples_of(arguments: argparse.Namespace, prepared: Path, rows_file: Path, count: int) -> Sequence[Example]:
    lengths = {"q_max_len": arguments.q_max_len, "p_max_len": arguments.p_max_len}
    tokenizer = AutoTokenizer.from_pretrained(prepared / "model")
    return read_examples(rows_file, tokenizer, count, n_passages=arguments.n_passages, **lengths)


def report(arguments: argparse.Namespace, model: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    libraries = [
        name for name in ("torch", "transformers", "sentence-transformers") if find_spec(name.replace("-", "_"))
    ]
    asked = ("threads", "device", "dtype", "n_passages", "q_max_len", "p_max_len", "flags", "repeats")
    return {
        **{name: metadata.version(name) for name in libraries},
        "machine": device_name(arguments.device),
        "model": model,
        **{name: getattr(arguments, name) for name in asked},
        "results": results,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="minilm, bert-base (random weights) or a directory")
    parser.add_argument("--batch", type=int, nargs="+", default=[256], help="queries of a batch")
    parser.add_argument("--n_passages", type=int, default=2, help="passages of a query")
    parser.add_argument("--q_max_len", type=int, default=32)
    parser.add_argument("--p_max_len", type=int, default=128)
    parser.add_argument("--flags", default="", help='of fastdense.train, for its cached step: "--gc_p_chunk_size 64"')
    parser.add_argument("--st_tokens", type=int, nargs="*", default=[1024, 4096],
                        help="values of sentence-transformers' mini_batch_num_tokens to try")  # fmt: skip
    parser.add_argument("--check_batch", type=int, default=32, help="queries whose gradients are compared")
    parser.add_argument("--dtype", choices=sorted(LARGEST_ERROR), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peaks, too")
    parser.add_argument("--only", action="append", default=[], help="providers whose name contains this; repeatable")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "train-step-data",
                        help="directory of the built-in data set, made if it is not there")  # fmt: skip
    parser.add_argument("--output", type=Path, help="write the result there as JSON")
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    rows_file = built_in_data(arguments.data) / "train.jsonl"
    if arguments.peak_of:
        setting = setting_of(arguments, arguments.prepared)
        provider = Providers(setting, arguments.st_tokens).make(arguments.peak_of)
        examples = examples_of(arguments, arguments.prepared, rows_file, arguments.batch[0])
        print(json.dumps(own_peak(provider, examples, arguments.device)))
        return
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(arguments.model, arguments.data, Path(directory))
        print(f"{model}, {arguments.n_passages} passages a query, {arguments.dtype}, {arguments.threads} threads")
        results, wrong = compare(arguments, Path(directory), rows_file)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report(arguments, model, results), indent=1) + "\n")
    if own := [name for name in wrong if name.startswith("fastdense")]:
        sys.exit(f"train_step: wrong gradients: {', '.join(own)}")


if __name__ == "__main__":
    main()
