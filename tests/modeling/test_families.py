"""Every family of backbone: gradients everywhere, padding without influence, the same vectors after saving."""

import copy

import pytest
import torch
from sentence_transformers import SentenceTransformer

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer

FAMILIES = [
    *((kind, pooling) for kind in ("bert", "roberta", "modernbert") for pooling in ("cls", "mean", "last")),
    *((kind, "cls") for kind in ("xlm-roberta", "distilbert", "electra", "mpnet", "albert", "deberta-v2")),
    *((kind, pooling) for kind in ("gpt2", "llama", "qwen2") for pooling in ("mean", "last")),
]


@pytest.mark.parametrize(("kind", "pooling"), FAMILIES)
def test_every_trainable_parameter_gets_a_gradient(kind, pooling, model_dir, batch, texts):
    """DDP runs without looking for unused parameters: one without a gradient would stop the second step."""
    retriever = load_retriever(model_dir(kind), pooling=pooling, untie_encoder=True)
    inputs = batch(load_tokenizer(model_dir(kind)), texts)
    query, passage = retriever(inputs, inputs)
    (query.square().sum() + passage.square().sum()).backward()
    without = [name for name, p in retriever.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert sum(p.requires_grad for p in retriever.parameters()) > 10


ABSOLUTE = ["bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "albert", "gpt2"]


@pytest.mark.parametrize("kind", ABSOLUTE)
def test_max_length_is_the_longest_text_there_are_positions_for(kind, model_dir):
    encoder = load_retriever(model_dir(kind), pooling="mean").query_encoder
    longest = {name: torch.ones(1, encoder.max_length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    longest["input_ids"] *= 7
    assert encoder(longest).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder({name: torch.cat([value, value[:, :1]], dim=1) for name, value in longest.items()})


def test_max_length_without_a_table_of_positions_is_the_configured_one(model_dir):
    assert load_retriever(model_dir("llama"), pooling="last").query_encoder.max_length == 160


@pytest.mark.parametrize(
    ("kind", "side", "pooling"),
    [
        *(("bert", "right", pooling) for pooling in ("cls", "mean", "last")),  # its positions shift with left padding
        *(("llama", side, pooling) for side in ("right", "left") for pooling in ("mean", "last")),
    ],
)
def test_padding_has_no_influence(kind, side, pooling, model_dir, batch, texts):
    retriever = load_retriever(model_dir(kind), pooling=pooling).eval()
    tokenizer = load_tokenizer(model_dir(kind))
    tokenizer.padding_side = side
    with torch.no_grad():
        together = retriever(batch(tokenizer, texts))[0]
        alone = torch.cat([retriever(batch(tokenizer, [text]))[0] for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "pooling"), FAMILIES)
def test_saved_model_gives_the_same_vectors_everywhere(kind, pooling, model_dir, batch, texts, tmp_path):
    retriever = load_retriever(model_dir(kind), pooling=pooling).eval()
    tokenizer = load_tokenizer(model_dir(kind))
    save_retriever(retriever, tokenizer, tmp_path, RetrieverSettings(q_max_len=32, p_max_len=32))
    with torch.no_grad():
        expected = retriever(batch(tokenizer, texts))[0]
        again = load_retriever(tmp_path).eval()(batch(load_tokenizer(tmp_path), texts))[0]
    model = SentenceTransformer(str(tmp_path), device="cpu")
    assert torch.equal(again, expected)
    torch.testing.assert_close(torch.from_numpy(model.encode_query(texts)), expected, rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_is_refused_where_the_backbone_has_none(model_dir):
    with pytest.raises(UserError, match="--gradient_checkpointing: MPNetModel does not support it"):
        load_retriever(model_dir("mpnet")).gradient_checkpointing_enable()


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama"])
def test_gradient_checkpointing_changes_no_gradient(kind, model_dir, batch, texts):
    plain = load_retriever(model_dir(kind), pooling="mean")
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    inputs = batch(load_tokenizer(model_dir(kind)), texts)
    for retriever in (plain, checkpointed):
        torch.manual_seed(3)
        retriever(inputs)[0].square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_the_unused_pooler_is_frozen_and_saved(model_dir, tmp_path):
    from safetensors.torch import load_file

    retriever = load_retriever(model_dir("bert"))
    assert not any(p.requires_grad for p in retriever.query_encoder.backbone.pooler.parameters())
    save_retriever(retriever, load_tokenizer(model_dir("bert")), tmp_path, RetrieverSettings())
    before = load_file(model_dir("bert") / "model.safetensors")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["pooler.dense.weight"], before["pooler.dense.weight"])
