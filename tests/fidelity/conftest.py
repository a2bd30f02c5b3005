"""An independent float64 oracle of what Tevatron v1 does with rows, batches, loss and optimizer, step by step.

Written from v1's observed behaviour, with nothing of fastdense in it: plain torch and the backbone from transformers.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

RELATIVE = 1e-4
ROUNDING_NOISE = 1e-10  # a float64 gradient below it is exactly zero on paper


@dataclass(frozen=True)
class V1Run:
    """The flags of v1 that decide what is computed; defaults are v1's, except for the tiny sizes."""

    model: Path
    rows: list[dict[str, Any]]
    epochs: int = 3
    batch_size: int = 4
    world_size: int = 1
    accumulation: int = 1
    n_passages: int = 2
    q_max_len: int = 10
    p_max_len: int = 20
    learning_rate: float = 1e-3
    seed: int = 42
    separator: str = " "
    untied: bool = False
    pooler: Path | None = None
    x_device: bool = False
    positive_shuffle: bool = True
    negative_shuffle: bool = True


@dataclass
class V1Result:
    """What v1 logs at every optimizer step, and the weights at both ends (name -> float64 tensor).

    ``determined`` marks the weights that v1 determines. The others have a gradient of zero on paper and of rounding
    noise in practice, which Adam turns into whole steps: the biases of attention keys, what shifts all passages alike.
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    determined: dict[str, Tensor] = field(default_factory=dict)


class Rows:
    """Rows to padded token ids: v1's choice of passages and its tokenization."""

    def __init__(self, run: V1Run) -> None:
        from transformers import AutoTokenizer

        self.run = run
        self.tokenizer = AutoTokenizer.from_pretrained(run.model)
        self.separator = getattr(self.tokenizer, run.separator, run.separator)

    def batch(self, indices: list[int], epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        queries = [self.run.rows[i]["query"] for i in indices]
        passages = [text for i in indices for text in self.passages(i, epoch)]
        return self.pad(queries, self.run.q_max_len), self.pad(passages, self.run.p_max_len)

    def passages(self, index: int, epoch: int) -> list[Any]:
        row, run, seed = self.run.rows[index], self.run, index + self.run.seed
        positives = row["positive_passages"] if "positive_passages" in row else row["positives"]
        negatives = list(row["negative_passages"] if "negative_passages" in row else row["negatives"])
        positive = positives[(seed + epoch) % len(positives)] if run.positive_shuffle else positives[0]
        wanted = run.n_passages - 1
        assert len(negatives) >= wanted, "v1 draws from an unseeded generator here"
        if not run.negative_shuffle:
            return [positive, *negatives[:wanted]]
        random.Random(seed).shuffle(negatives)
        offset = epoch * wanted % len(negatives)
        return [positive, *(negatives * 2)[offset : offset + wanted]]

    def pad(self, texts: list[Any], length: int) -> dict[str, Tensor]:
        ids = torch.full((len(texts), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(texts), length, dtype=torch.int64)
        for i, text in enumerate(texts):
            tokens = [self.tokenizer.cls_token_id, *self.ids(text)[: length - 2], self.tokenizer.sep_token_id]
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def ids(self, text: Any) -> list[int]:
        if isinstance(text, list):  # tokenized already
            return text
        if isinstance(text, dict):
            text = text["title"] + self.separator + text["text"] if "title" in text else text["text"]
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class BiEncoder(nn.Module):
    """CLS of the backbone, then v1's pooler if there is one; ``passage`` is ``query`` unless untied."""

    def __init__(self, run: V1Run) -> None:
        from transformers import AutoModel

        super().__init__()

        def backbone() -> nn.Module:
            return AutoModel.from_pretrained(run.model, dtype=torch.float64, attn_implementation="eager").eval()

        self.query = backbone()
        self.passage = backbone() if run.untied else self.query
        self.linear_q = self.linear_p = None
        if run.pooler is not None:
            saved = torch.load(run.pooler, weights_only=True)
            self.linear_q = linear_layer(saved, "linear_q")
            self.linear_p = linear_layer(saved, "linear_p") if run.untied else self.linear_q

    def forward(self, query: dict[str, Tensor], passage: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        q = self.query(**query).last_hidden_state[:, 0]
        p = self.passage(**passage).last_hidden_state[:, 0]
        return (q, p) if self.linear_q is None else (self.linear_q(q), self.linear_p(p))


def linear_layer(saved: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = saved[f"{name}.weight"], saved[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def batches_of_an_epoch(run: V1Run, epoch: int) -> list[list[int]]:
    """Full batches of one rank each: a permutation seeded by seed + epoch, the short last batch dropped."""
    order = torch.randperm(len(run.rows), generator=torch.Generator().manual_seed(run.seed + epoch)).tolist()
    whole = len(order) // run.batch_size
    return [order[i * run.batch_size : (i + 1) * run.batch_size] for i in range(whole)]


def steps(run: V1Run) -> Iterator[tuple[int, list[list[list[int]]]]]:
    """Of every optimizer step the epoch's number and the row indices [accumulation][rank][query]."""
    size = run.world_size * run.accumulation
    for epoch in range(run.epochs):
        batches = batches_of_an_epoch(run, epoch)
        assert len(batches) % size == 0, "the oracle knows no step that is cut short"
        for start in range(0, len(batches), size):
            group = batches[start : start + size]
            yield epoch, [group[i : i + run.world_size] for i in range(0, size, run.world_size)]


def contrastive_loss(query: Tensor, passage: Tensor) -> Tensor:
    target = torch.arange(len(query)) * (len(passage) // len(query))
    return functional.cross_entropy(query @ passage.T, target)


def micro_batch_loss(run: V1Run, model: BiEncoder, rows: Rows, ranks: list[list[int]], epoch: int) -> Tensor:
    """With shared negatives one loss over all ranks' rows, else the mean of the ranks' own losses."""
    groups = [[i for rank in ranks for i in rank]] if run.x_device else ranks
    return torch.stack([contrastive_loss(*model(*rows.batch(group, epoch))) for group in groups]).mean()


class AdamW:
    """AdamW with HF's defaults: betas 0.9 and 0.999, eps 1e-8, no weight decay."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]
        self.t = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        self.t += 1
        for p, m, v in zip(self.parameters, self.first, self.second, strict=True):
            if p.grad is not None:
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).add_(p.grad**2, alpha=0.001)
                denominator = (v / (1 - 0.999**self.t)).sqrt() + 1e-8
                p -= learning_rate * (m / (1 - 0.9**self.t)) / denominator
                p.grad = None


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up over a tenth of all steps, from 0; then linear to 0."""
    warmup = math.ceil(0.1 * total)
    return peak * step / warmup if step < warmup else peak * (total - step) / (total - warmup)


def clip(parameters: list[nn.Parameter], maximum: float = 1.0) -> float:
    """Scale all gradients to a total norm of at most ``maximum``; return the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm().item()
    if norm > maximum:
        for gradient in gradients:
            gradient *= maximum / norm
    return norm


def weights_of(model: BiEncoder) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def train(run: V1Run) -> V1Result:
    rows, model = Rows(run), BiEncoder(run)
    parameters = list(model.parameters())
    optimizer, schedule, result = AdamW(parameters), list(steps(run)), V1Result(before=weights_of(model))
    for step, (epoch, micro_batches) in enumerate(schedule):
        loss = torch.stack([micro_batch_loss(run, model, rows, ranks, epoch) for ranks in micro_batches]).mean()
        loss.backward()
        result.loss.append(loss.item())
        result.grad_norm.append(clip(parameters))
        result.learning_rate.append(learning_rate(step, len(schedule), run.learning_rate))
        optimizer.step(result.learning_rate[-1])
    result.after = weights_of(model)
    sizes = zip(result.after, optimizer.second, strict=True)
    result.determined = {name: (v == 0) | (v.sqrt() > ROUNDING_NOISE) for name, v in sizes}
    return result


@pytest.fixture(scope="session")
def v1_run() -> type[V1Run]:
    return V1Run


@pytest.fixture(scope="session")
def v1_train() -> Callable[[V1Run], V1Result]:
    """``v1_train(run)``: what v1 computes, at every step."""
    return train


@pytest.fixture(scope="session")
def flags_of() -> Callable[[V1Run, Path, Path], list[str]]:
    """``flags_of(run, data, output_dir)``: the command line that every comparison shares."""

    def flags(run: V1Run, data: Path, output: Path) -> list[str]:
        named = {
            "output_dir": output,
            "model_name_or_path": run.model,
            "train_dir": data,
            "num_train_epochs": run.epochs,
            "per_device_train_batch_size": run.batch_size,
            "train_n_passages": run.n_passages,
            "q_max_len": run.q_max_len,
            "p_max_len": run.p_max_len,
            "learning_rate": run.learning_rate,
            "logging_steps": 1,
            "save_strategy": "no",
            "dataset_proc_num": 1,
            "disable_tqdm": True,
            "data_cache_dir": output.parent / "cache",
        }
        pairs = [word for name, value in named.items() for word in (f"--{name}", str(value))]
        return [*pairs, "--do_train", "--use_cpu"]

    return flags


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Path, V1Result], None]:
    """``assert_same(output_dir, expected)``: the log of every step and the saved weights are v1's."""

    def check(output: Path, expected: V1Result) -> None:
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        logged = [entry for entry in history if "loss" in entry]
        for name in ("loss", "learning_rate", "grad_norm"):
            assert [entry[name] for entry in logged] == pytest.approx(getattr(expected, name), rel=RELATIVE), name
        weights = saved_weights(output)
        assert weights.keys() == expected.after.keys()
        missed = {name: (expected.after[name] - weights[name]) * expected.determined[name] for name in weights}
        moved = {name: expected.after[name] - expected.before[name] for name in weights}
        assert norm(missed) <= RELATIVE * norm(moved)

    return check


def norm(tensors: dict[str, Tensor]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors.values()]).norm().item()


def saved_weights(output: Path) -> dict[str, Tensor]:
    """The weights in v1's layout, under the oracle's names."""
    from transformers import AutoModel

    untied = (output / "query_model").is_dir()
    sides = {"query": output / "query_model", "passage": output / "passage_model"} if untied else {"query": output}
    named = {
        f"{side}.{name}": parameter
        for side, folder in sides.items()
        for name, parameter in AutoModel.from_pretrained(folder).named_parameters()
    }
    if (output / "pooler.pt").exists():
        pooler = torch.load(output / "pooler.pt", weights_only=True)
        named |= {name: weight for name, weight in pooler.items() if untied or name.startswith("linear_q")}
    return {name: weight.detach().double() for name, weight in named.items()}
