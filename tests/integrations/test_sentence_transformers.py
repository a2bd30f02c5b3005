"""sentence-transformers' in-batch negatives losses and their fused versions."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.util import dot_score
from torch import Tensor, nn

from fastdense.integrations import sentence_transformers as ours
from fastdense.integrations.sentence_transformers import losses

PLAIN = losses.MultipleNegativesRankingLoss, ours.FusedMultipleNegativesRankingLoss
CACHED = losses.CachedMultipleNegativesRankingLoss, ours.CachedFusedMultipleNegativesRankingLoss
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
FUSED = {
    "default": {},
    "dot": {"similarity_fct": dot_score, "scale": 0.3},
    "cold": {"scale": 100.0},
    "symmetric": SYMMETRIC,
    "symmetric-dot": SYMMETRIC | {"similarity_fct": dot_score, "scale": 0.3},
    "one-direction": {"directions": ("query_to_doc",), "partition_mode": "per_direction"},
    "no-hardness": {"hardness_mode": "hard_negatives", "hardness_strength": 0.0},
}
NOT_FUSED = {
    "own-similarity": {"similarity_fct": lambda a, b: -torch.cdist(a, b)},
    "joint-symmetric": {"directions": ("query_to_doc", "doc_to_query")},
    "joint-all": {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    "hardness": {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0},
}
Texts = list[list[str]]


def named(options: dict[str, dict]) -> list:
    return [pytest.param(value, id=name) for name, value in options.items()]


@pytest.fixture
def columns(normal) -> list[Tensor]:
    """Anchors, positives and two negatives each, of no particular length; the positives lean towards their anchors."""
    anchor, positive, *negatives = (normal(9, 16) for _ in range(4))
    return [anchor, 0.4 * anchor + positive, *negatives]


@pytest.fixture
def encoder(tiny_bert_no_dropout_dir: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_bert_no_dropout_dir), device="cpu").train()


@pytest.fixture
def texts(tiny_rows) -> Texts:
    """Columns of seven rows: queries, positives, negatives."""
    rows = tiny_rows[:7]
    return [
        [row["query"] for row in rows],
        [row["positive_passages"][0]["text"] for row in rows],
        [row["negative_passages"][0]["text"] for row in rows],
    ]


@pytest.fixture
def step(encoder: SentenceTransformer, texts: Texts) -> Callable[[nn.Module], dict[str, Tensor]]:
    """``step(loss)``: the loss of a batch of texts, and the gradient of every parameter of the loss."""

    def run(loss: nn.Module) -> dict[str, Tensor]:
        loss.zero_grad()
        value = loss([preprocess(encoder)(column) for column in texts], None)
        (value * 3).backward()
        gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
        return {"loss": value.detach()} | gradients

    return run


def preprocess(encoder: SentenceTransformer) -> Callable[[list[str]], dict[str, Tensor]]:
    return getattr(encoder, "preprocess", None) or encoder.tokenize  # version 5's name


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every gradient within 1e-5 of the largest one's norm: some are zero but for rounding."""
    assert actual.keys() == expected.keys()
    assert len(actual) > 10
    torch.testing.assert_close(actual["loss"], expected["loss"], rtol=2e-6, atol=2e-6)
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (actual[name] - gradient).norm() <= 1e-5 * largest, name


def of_columns(loss: nn.Module) -> Callable[..., Tensor]:
    return lambda *columns: loss.compute_loss_from_embeddings(list(columns), None)


def of_mini_batches(loss: nn.Module) -> Callable[..., Tensor]:
    return lambda *columns: loss.calculate_loss([list(column.split(4)) for column in columns])


@pytest.mark.parametrize("options", named(FUSED))
@pytest.mark.parametrize("width", [2, 4])
def test_loss_and_gradients_are_the_same(assert_exact, columns, encoder, options, width):
    for (peer, fused), call in ((PLAIN, of_columns), (CACHED, of_mini_batches)):
        assert_exact(call(fused(encoder, **options)), call(peer(encoder, **options)), columns[:width])


@pytest.mark.parametrize("options", named(FUSED))
def test_what_is_fused_does_not_reach_the_parent(monkeypatch, columns, encoder, options):
    for (peer, fused), call in ((PLAIN, of_columns), (CACHED, of_mini_batches)):
        loss = fused(encoder, **options)
        monkeypatch.setattr(peer, "compute_loss_from_embeddings", None, raising=False)  # not callable
        monkeypatch.setattr(peer, "calculate_loss", None, raising=False)
        assert call(loss)(*columns).isfinite()


@pytest.mark.parametrize("options", named(NOT_FUSED))
def test_the_parent_computes_what_is_not_fused(monkeypatch, columns, encoder, options):
    monkeypatch.setattr(ours, "contrastive_loss", None)  # not callable
    for (peer, fused), call in ((PLAIN, of_columns), (CACHED, of_mini_batches)):
        assert torch.equal(call(fused(encoder, **options))(*columns), call(peer(encoder, **options))(*columns))


def test_sparse_representations_go_to_the_parent(monkeypatch, columns, encoder):
    """Whether a version's parent can index them is its own matter."""
    monkeypatch.setattr(PLAIN[0], "compute_loss_from_embeddings", lambda *_: "parent's")
    sparse = [column.to_sparse() for column in columns[:2]]
    assert of_columns(PLAIN[1](encoder))(*sparse) == "parent's"


def test_fewer_than_two_columns_are_answered_by_the_parent(columns, encoder):
    with pytest.raises(ValueError, match="Expected at least 2 embeddings, got 1"):
        of_columns(ours.FusedMultipleNegativesRankingLoss(encoder))(columns[0])


@pytest.mark.parametrize("options", named({name: FUSED[name] for name in ("default", "symmetric")}))
def test_a_learnable_scale_gets_its_gradient(columns, encoder, options):
    gradients = []
    for kind in PLAIN:
        loss = kind(encoder, scale=nn.Parameter(torch.tensor(17.0)), **options)
        of_columns(loss)(*columns).backward()
        gradients.append(loss.scale.grad)
        assert "scale" in dict(loss.named_parameters())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_gathering_without_ranks_is_no_gathering(columns, encoder):
    for fused, call in ((PLAIN[1], of_columns), (CACHED[1], of_mini_batches)):
        for options in (FUSED["default"], FUSED["symmetric"]):
            alone = call(fused(encoder, **options))(*columns)
            gathered = call(fused(encoder, gather_across_devices=True, **options))(*columns)
            torch.testing.assert_close(gathered, alone)


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_is_no_less_exact(columns, encoder, autocast):
    columns = columns if autocast else [column.bfloat16() for column in columns]
    exact = of_columns(PLAIN[0](encoder))(*(column.double() for column in columns))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain, fused = (of_columns(kind(encoder))(*columns) for kind in PLAIN)
    assert fused.dtype == torch.float32
    assert abs(fused - exact) <= abs(plain - exact) + (5e-3 if autocast else 1e-6)


@pytest.mark.parametrize("scale", ["fixed", "learnable"])
def test_a_step_through_the_encoder_is_the_same(encoder, step, scale):
    def loss(kind: type, **options) -> nn.Module:
        number = 20.0 if scale == "fixed" else nn.Parameter(torch.tensor(20.0))
        return kind(encoder, scale=number, **options)

    for peer, fused in (PLAIN, CACHED):
        assert_same(step(loss(fused)), step(loss(peer)))
    if scale == "fixed":
        assert_same(step(loss(CACHED[1], mini_batch_size=3)), step(loss(PLAIN[1])))


def test_mini_batches_by_tokens(encoder, step):
    assert_same(step(CACHED[1](encoder, mini_batch_num_tokens=20)), step(PLAIN[0](encoder)))


@pytest.mark.parametrize("options", named({name: FUSED[name] for name in ("default", "symmetric")}))
def test_inside_matryoshka(encoder, step, options):
    for peer, fused in (PLAIN, CACHED):
        plain, ours_ = (
            losses.MatryoshkaLoss(encoder, kind(encoder, **options), matryoshka_dims=[32, 16, 8])
            for kind in (peer, fused)
        )
        assert_same(step(ours_), step(plain))


def test_evaluation_computes_no_gradient(encoder, step, texts):
    features = [preprocess(encoder)(column) for column in texts]
    with torch.no_grad():
        values = [kind(encoder)(features, None) for kind in (*PLAIN, *CACHED)]
    assert not any(value.requires_grad for value in values)
    torch.testing.assert_close(torch.stack(values), values[0].expand(4), rtol=2e-6, atol=2e-6)


def test_settings_and_citation_are_those_of_the_parent(encoder):
    for (peer, fused), options in ((PLAIN, {"scale": 5.0}), (CACHED, {"mini_batch_size": 4})):
        assert isinstance(fused(encoder), peer)
        assert fused(encoder, **options).get_config_dict() == peer(encoder, **options).get_config_dict()
        assert fused(encoder).citation == peer(encoder).citation
        assert getattr(fused, "uses_gradient_cache", None) == getattr(peer, "uses_gradient_cache", None)


@pytest.fixture
def train(tiny_bert_no_dropout_dir: Path, texts: Texts, tmp_path: Path) -> Iterator[Callable]:
    """``train(make_loss)`` takes three steps with the library's trainer and returns it."""
    from datasets import Dataset

    rows = Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), texts, strict=True)))

    def run(make_loss: Callable[[SentenceTransformer], nn.Module]) -> SentenceTransformerTrainer:
        encoder = SentenceTransformer(str(tiny_bert_no_dropout_dir), device="cpu")
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path), per_device_train_batch_size=7, max_steps=3, learning_rate=1e-3, lr_scheduler_type="constant",
            logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, optim="sgd",
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(encoder, arguments, train_dataset=rows, loss=make_loss(encoder))
        trainer.train()
        return trainer

    return run


def test_the_librarys_trainer_takes_the_same_steps(train):
    runs = []
    for kind in (PLAIN[0], PLAIN[1], CACHED[1]):
        scale = nn.Parameter(torch.tensor(20.0))
        trainer = train(lambda encoder, kind=kind, scale=scale: kind(encoder, scale=scale))
        logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((logged, scale.item()))
    (expected, expected_scale), *fused = runs
    assert len(set(expected)) == 3
    assert expected_scale != 20.0
    for actual, actual_scale in fused:
        assert actual == pytest.approx(expected, rel=1e-4)  # as rounded in the log
        assert actual_scale == pytest.approx(expected_scale, rel=1e-6)


def test_the_model_card_names_the_loss_its_settings_and_its_source(train, tmp_path):
    trainer = train(lambda encoder: CACHED[1](encoder, scale=17.0))
    trainer.model.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "fastdense.integrations.sentence_transformers.CachedFusedMultipleNegativesRankingLoss" in card
    assert '"scale": 17.0' in card
    assert "Scaling Deep Contrastive Learning Batch Size" in card
