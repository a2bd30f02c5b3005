"""Where the time of a cached training step goes, by the kind of operation, as JSON and as a picture in docs/.

    python -m benches step_profile --batch 32 --threads 2 --name cpu-amd-epyc-zen3

One step, forward, loss and backward, under torch's profiler after one that warms up; an operation's own time counts,
without that of the operations it calls. Shares add up to the time inside operations: Python between them is not in it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

from benches.machine import device_name
from benches.pages import ROOT
from benches.pictures import pyplot, save
from benches.step_inputs import built_in_data, read_examples, write_model
from benches.step_providers import Providers, Setting

PROVIDER = "fastdense cached"
# The first kind whose part occurs in an operation's name.
KINDS = {
    "matrix products": ("mm", "linear", "bmm"),
    "attention": ("attention",),
    "dropout": ("dropout", "bernoulli"),
    "loss": ("fastdense", "contrastive"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "softmax": ("softmax",),
    "embedding": ("embedding", "index_add", "scatter_add"),
    "copies": ("copy_", "clone", "cat", "index_select"),
    "element-wise": ("add", "mul", "div", "sum", "masked_fill", "fill_", "zero_", "where"),
}
OTHER = "other"


def kind_of(operation: str) -> str:
    """What the picture calls an operation such as ``aten::addmm``."""
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), OTHER)


def shares(profiled: Any) -> dict[str, float]:
    """Share of the time for each kind, largest first."""
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = kind_of(event.key)
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: time / total for kind, time in sorted(spent.items(), key=lambda item: -item[1])}


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    rows = built_in_data(arguments.data) / "train.jsonl"
    model = write_model(arguments.model, arguments.data, directory)
    setting = Setting(model=str(directory / "model"), flags=arguments.flags)
    provider = Providers(setting, []).make(PROVIDER)
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    lengths = {"q_max_len": setting.q_max_len, "p_max_len": setting.p_max_len}
    inputs = provider.prepare(read_examples(rows, tokenizer, arguments.batch, n_passages=2, **lengths))
    provider.step(inputs)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        provider.step(inputs)
    return {
        "machine": device_name("cpu"),
        "torch": torch.__version__,
        "model": model,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "flags": arguments.flags,
        "shares": shares(profiled),
    }


def draw(report: dict[str, Any], path: Path) -> None:
    kinds = list(report["shares"])[::-1]
    figure, axes = pyplot().subplots(figsize=(8, 3), layout="constrained")
    bars = axes.barh(kinds, [100 * report["shares"][kind] for kind in kinds])
    axes.bar_label(bars, fmt="%.1f %%", padding=3)
    axes.set(xlabel="share of a step's operations", xlim=(0, 110))
    title = f"{report['model']}, {report['batch']} queries and {2 * report['batch']} passages"
    axes.set_title(f"{title}: {report['machine']}, {report['threads']} threads", fontsize=8)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="minilm, bert-base (random weights) or a directory")
    parser.add_argument("--batch", type=int, default=32, help="queries, of two passages each")
    parser.add_argument("--flags", default="", help="of fastdense.train")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", required=True, help="of the machine: what the files are called")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "train-step-data")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "benches" / "results")
    parser.add_argument("--docs_dir", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as directory:
        report = measure(arguments, Path(directory))
    file = f"step-profile-{arguments.name}"
    (arguments.results_dir / f"{file}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, arguments.docs_dir / f"{file}.svg")
    print("\n".join(f"{kind:20}{share:7.1%}" for kind, share in report["shares"].items()))


if __name__ == "__main__":
    main()
