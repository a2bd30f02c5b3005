"""Prefixes, filters and teachers in a step, plain and cached, against autograd through the model.

Over ranks: ``tests/distributed``.
"""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from fastdense.errors import UserError
from fastdense.loss.false_negatives import FalseNegativeFilter
from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import read_settings
from fastdense.training import step as step_module
from fastdense.training.step import CacheSettings, ContrastiveStep, Distillation, Prefixes
from tests.training.test_step import make_batch, make_retriever, run

DIMS, WEIGHTS = (16, 8, 4), (1.0, 0.5, 2.0)
TEACHER = Distillation(temperature=1.5, weight=3.0)
GUIDE = make_retriever(tied=False, seed=9).eval()
SCORES = 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(8))


def by_autograd(retriever, batch, *, scale, prefixes=None, margin=None, distillation=None, guide=None):
    """The plain form: [N, M] matrices, and autograd through everything."""
    retriever.zero_grad()
    query, passage = retriever(query=batch["query"], passage=batch["passage"])
    loss = 0
    for dim, weight in zip(prefixes.dims, prefixes.weights, strict=True) if prefixes else [(16, 1.0)]:
        cut = [vectors[:, :dim] for vectors in (query, passage)]
        q, p = (F.normalize(x, dim=1) for x in cut) if retriever.query_encoder.normalize else cut
        similarity = q @ p.T
        if margin is not None:
            own = F.one_hot(batch["target"], len(p)).bool()
            judged = similarity if guide is None else guide_scores(guide, batch)
            similarity = similarity.masked_fill((judged > judged[own][:, None] - margin) & ~own, -torch.inf)
        loss = loss + weight * F.cross_entropy(scale * similarity, batch["target"])
        if distillation is not None:
            wanted = (batch["teacher_score"] / distillation.temperature).softmax(1)
            own = torch.stack([similarity[i, 3 * i : 3 * i + 3] for i in range(len(q))])
            divergence = F.kl_div((scale * own).log_softmax(1), wanted, reduction="batchmean")
            loss = loss + weight * distillation.weight * divergence
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in retriever.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def guide_scores(guide, batch):
    query, passage = guide(query=batch["query"], passage=batch["passage"])
    return (query @ passage.T).detach()


def assert_near(actual, expected):
    """Equal but for the rounding of float32, whose order of sums differs."""
    largest = float(max(value.abs().max() for value in expected.values()))
    assert actual.keys() - {"accuracy"} == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("cache", [None, CacheSettings(40)], ids=["plain", "cached"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"prefixes": Prefixes(DIMS, WEIGHTS)},
        {"false_negatives": FalseNegativeFilter(absolute=-0.01)},
        {"prefixes": Prefixes(DIMS, WEIGHTS), "false_negatives": FalseNegativeFilter(absolute=-0.01)},
        {"prefixes": Prefixes(DIMS, WEIGHTS), "false_negatives": FalseNegativeFilter(absolute=0.0), "guide": GUIDE},
        {"distillation": TEACHER},
        {"prefixes": Prefixes(DIMS, WEIGHTS), "distillation": TEACHER},
    ],
    ids=["prefixes", "filter", "both", "guide", "teacher", "taught-prefixes"],
)
def test_a_step_is_autograd_through_the_plain_form(cache, normalize, options):
    retriever, batch = make_retriever(), {**make_batch(copies=True), "teacher_score": SCORES}
    for encoder in (retriever.query_encoder, retriever.passage_encoder):
        encoder.normalize = normalize
    margin = options["false_negatives"].absolute if "false_negatives" in options else None
    plain = {name: options.get(name) for name in ("prefixes", "distillation", "guide")}
    expected = by_autograd(retriever, batch, scale=5.0, margin=margin, **plain)
    actual = run(ContrastiveStep(5.0, **options, cache=cache), retriever, batch)
    assert_near(actual, expected)


def scored(rows):
    for number, row in enumerate(rows):
        for side in ("positive_passages", "negative_passages"):
            for place, passage in enumerate(row[side]):
                passage["score"] = (number + place) % 5 - 0.5
    return rows


def test_a_run_learns_from_the_scores_in_its_rows(train_tiny, tiny_rows, write_jsonl, tmp_path, monkeypatch):
    rows, seen = write_jsonl(tmp_path / "scored.jsonl", scored(tiny_rows)), []
    original = step_module.distillation_loss_and_grad

    def noting(*args, **settings):
        seen.append((args[3], settings))
        return original(*args, **settings)

    monkeypatch.setattr(step_module, "distillation_loss_and_grad", noting)
    flags = f"--train_dir {rows} --distil_temperature 2 --distil_weight 3 --temperature 0.1 --max_steps 2 --grad_cache"
    train_tiny(*flags.split())
    assert [(*scores.shape,) for scores, _ in seen] == [(8, 3)] * 2
    assert seen[0][1] == {"scale": 10.0, "temperature": 2.0}
    assert {float(score) for scores, _ in seen for score in scores.flatten()} <= {-0.5, 0.5, 1.5, 2.5, 3.5}


def test_a_run_is_guided_by_a_model_that_stays_as_it_is(train_tiny, tiny_bert_dir, monkeypatch):
    seen = []
    original = step_module.prefix_loss_and_grad

    def noting(query, passage, *args, guide, **settings):
        seen.append((query, guide, settings["false_negatives"]))
        return original(query, passage, *args, guide=guide, **settings)

    monkeypatch.setattr(step_module, "prefix_loss_and_grad", noting)
    flags = f"--guide_model {tiny_bert_dir} --max_steps 3 --train_sampling_strategy sequential --train_n_passages 1"
    first = train_tiny(*flags.split(), "--grad_cache", "--learning_rate", "0.1")
    before = seen.copy()
    seen.clear()
    train_tiny(*flags.split(), *"--learning_rate 0 --false_negative_margin 0.2".split(), name="again")
    for (_, found, _), (_, expected, _) in zip(before, seen, strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)  # without dropout, whatever the model has become
    assert {rule for _, _, rule in before} == {FalseNegativeFilter(absolute=0.0)}
    assert {rule for _, _, rule in seen} == {FalseNegativeFilter(absolute=0.2)}
    assert not torch.allclose(before[0][0], before[0][1][0])
    assert load_retriever(str(first)).tied


def test_a_guide_that_reads_other_tokens_is_refused(train_tiny, tiny_bert_dir, tmp_path):
    other = shutil.copytree(tiny_bert_dir, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="--guide_model .*other: its tokenizer is not that of the model"):
        train_tiny("--guide_model", str(other))


def test_a_run_says_which_dimensions_it_trained(train_tiny):
    flags = "--matryoshka_dims 8 16 --false_negative_margin -0.1 --normalize --max_steps 1 --grad_cache"
    output = train_tiny(*flags.split())
    assert read_settings(output).matryoshka_dims == (16, 8)
    assert json.loads((output / "fastdense.json").read_text())["matryoshka_dims"] == [16, 8]
    assert "trained to be cut to 16, 8" in (output / "README.md").read_text()
    assert load_retriever(str(output)).query_encoder.dimension >= 16
