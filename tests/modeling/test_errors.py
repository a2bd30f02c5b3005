"""Everything that can be wrong with a model ends in one sentence."""

import json
import shutil

import pytest
import torch
from locked import locked
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from torch import nn
from transformers import AutoConfig, AutoModel

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever, load_weights
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer


def refused(pattern, call, *arguments, **settings):
    with pytest.raises(UserError, match=pattern) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(tuple("abcdefghijklmnopqrstuvwxyz)]'_0123456789"))


def write(directory, name, content):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def save_model(kind, directory, **settings):
    AutoConfig.for_model(kind, **settings).save_pretrained(directory)
    return directory


# ---- flags


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"pooling": "max"}, "--pooling must be one of cls, mean, last, not 'max'"),
        ({"add_pooler": True}, "--projection_in_dim is 768, but the hidden size of .* is 32: .*--projection_in_dim 32"),
        ({"add_pooler": True, "projection_in_dim": 32, "projection_out_dim": 0}, "--projection_out_dim must be at"),
        ({"attn_implementation": "fancy"}, "--attn_implementation fancy does not work"),
        ({"attn_implementation": "flash_attention_2"}, "--attn_implementation flash_attention_2 does not work"),
        ({"config_name": "/nowhere"}, "there is no directory /nowhere"),
    ],
)
def test_flags(settings, pattern, tiny_bert_dir):
    refused(pattern, load_retriever, tiny_bert_dir, **settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2"])
def test_decoders_cannot_pool_their_first_token(kind, model_dir):
    refused(f"decoder .{kind}.*pass --pooling last", load_retriever, model_dir(kind))
    refused("pass --pooling last", load_retriever, model_dir(kind), pooling="cls")


def test_a_bert_that_is_a_decoder_is_one(bert_copy, edit_json):
    edit_json(bert_copy / "config.json", lambda config: config.update(is_decoder=True))
    refused("pass --pooling last", load_retriever, bert_copy)


# ---- names and directories


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("/no/such/directory", "there is no directory /no/such/directory"),
        ("./missing", "there is no directory ./missing"),
        ("a/b/c", "there is no directory a/b/c"),
        ("", "the name of the model is empty"),
        ("bert-base-uncased", r"no model of this name is in the Hugging Face cache .* \(HF_HUB_OFFLINE is set\)"),
        ("org/model", "org/model is no directory here"),
        ("what is this?", "neither a directory nor a possible name"),
    ],
)
@pytest.mark.parametrize("call", [load_retriever, load_tokenizer, read_settings])
def test_names(name, pattern, call):
    refused(pattern, call, name)


def test_a_file_is_no_directory(tiny_bert_dir):
    refused("is a file: give the model's directory", load_retriever, tiny_bert_dir / "config.json")


def test_empty_directory(tmp_path):
    refused("has no config.json: it is no model directory", load_retriever, tmp_path)
    refused("has no tokenizer: pass --tokenizer_name", load_tokenizer, tmp_path)
    assert read_settings(tmp_path) is None


# ---- the configuration


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ({"hidden_size": 32}, "config.json has no model_type"),
        ("{", "config.json is no readable JSON"),
        ("", "config.json is no readable JSON"),
        ([1], "config.json must hold a JSON object, not list"),
        ({"model_type": "unheard_of"}, "cannot use .*config.json: "),
        ({"model_type": 3}, "config.json has no model_type"),
        ({"model_type": "bert", "hidden_size": "wide"}, "cannot use .*config.json: "),
        ({"auto_map": {"AutoModel": "code.Model", "AutoConfig": "code.Config"}}, "--trust_remote_code"),
        ({"model_type": "own", "auto_map": {"AutoModel": "code.Model"}}, "--trust_remote_code"),
    ],
)
def test_configuration(content, pattern, bert_copy):
    write(bert_copy, "config.json", content)
    refused(pattern, load_retriever, bert_copy)


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("t5", r"encoder-decoder model \(t5\)"),
        ("bart", r"encoder-decoder model \(bart\)"),
        ("vit", r"not a text model \(vit\)"),
        ("clip", r"not a text model \(clip\)"),
        ("whisper", r"encoder-decoder model \(whisper\)|not a text model \(whisper\)"),
        ("wav2vec2", r"not a text model \(wav2vec2\)"),
        ("resnet", r"not a text model \(resnet\)"),
    ],
)
def test_models_that_are_no_text_encoders(kind, pattern, tmp_path):
    refused(pattern, load_retriever, save_model(kind, tmp_path))


def test_a_model_without_token_states(tmp_path, tiny_bert_dir, batch, texts):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
    config = AutoConfig.for_model("dpr", vocab_size=200, **sizes)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    retriever = load_retriever(tmp_path)
    refused("last_hidden_state", retriever, batch(load_tokenizer(tiny_bert_dir), texts))


# ---- the weights


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_weights(keep, bert_copy):
    path = bert_copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused("damaged or cut short", load_retriever, bert_copy)


def test_weights_that_are_no_safetensors(bert_copy):
    (bert_copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    refused("damaged or cut short", load_retriever, bert_copy)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"text"])
def test_damaged_pickled_weights(content, bert_copy):
    (bert_copy / "model.safetensors").unlink()
    (bert_copy / "pytorch_model.bin").write_bytes(content)
    refused("damaged or cut short|cannot load the model", load_retriever, bert_copy)


def test_weights_that_would_run_code(bert_copy):
    class Code:
        def __reduce__(self):
            return print, ("code ran",)

    (bert_copy / "model.safetensors").unlink()
    torch.save({"x": Code()}, bert_copy / "pytorch_model.bin")
    refused("damaged or cut short|cannot load the model", load_retriever, bert_copy)


def test_no_weights(bert_copy):
    (bert_copy / "model.safetensors").unlink()
    refused(r"has no weights \(model.safetensors or pytorch_model.bin\)$", load_retriever, bert_copy)
    (bert_copy / "flax_model.msgpack").touch()
    refused("flax_model.msgpack cannot be read, convert it first", load_retriever, bert_copy)


def test_weights_of_another_model(bert_copy):
    save_file({"other.weight": torch.zeros(3)}, bert_copy / "model.safetensors", {"format": "pt"})
    refused(r"lacks \d+ of the \d+ weights of its BertModel, embeddings", load_retriever, bert_copy)


def test_one_weight_is_missing(bert_copy):
    path = bert_copy / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    refused(r"lacks 1 of the 39 weights .*encoder.layer.1.output.dense.weight", load_retriever, bert_copy)


def test_weights_of_another_size(bert_copy, edit_json):
    edit_json(bert_copy / "config.json", lambda config: config.update(intermediate_size=48))
    pattern = r"dense.bias has the shape \(64,\) in the weights, but \(48,\) by the configuration"
    refused(pattern, load_retriever, bert_copy)


def test_a_missing_shard(tiny_bert_dir, tmp_path):
    AutoModel.from_pretrained(tiny_bert_dir).save_pretrained(tmp_path, max_shard_size="20KB")
    load_retriever(tmp_path)
    next(iter(sorted(tmp_path.glob("model-*.safetensors")))).unlink()
    refused("cannot load the model", load_retriever, tmp_path)


# ---- Tevatron's pooler


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (b"", "pooler.pt is damaged"),
        (b"nonsense", "pooler.pt is damaged"),
        ({"other": torch.zeros(3)}, r"pooler.pt must hold linear_q.weight"),
        ({"linear_q.weight": torch.zeros(3)}, r"pooler.pt must hold linear_q.weight"),
        ([1, 2], r"pooler.pt must hold linear_q.weight"),
        ({"linear_q.weight": torch.zeros(8, 48), "linear_q.bias": torch.zeros(8)}, "takes 48 dimensions, but the enc"),
    ],
)
def test_pooler(content, pattern, bert_copy):
    if isinstance(content, bytes):
        (bert_copy / "pooler.pt").write_bytes(content)
    else:
        torch.save(content, bert_copy / "pooler.pt")
    refused(pattern, load_retriever, bert_copy, add_pooler=True)


# ---- sentence-transformers directories

PREFIX = "sentence_transformers.models."


def modules(*kinds):
    return [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": kind} for i, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ("[", "modules.json is no readable JSON"),
        ({"a": 1}, "must be a list of modules"),
        ([{"path": ""}], "must be a list of modules"),
        ([], "is made of no modules"),
        (modules(PREFIX + "Transformer"), "is made of Transformer "),
        (modules(PREFIX + "StaticEmbedding"), "is made of StaticEmbedding"),
        (modules(PREFIX + "Transformer", PREFIX + "Pooling", PREFIX + "Dense", PREFIX + "Dense"), "Dense, Dense"),
        (modules(PREFIX + "Transformer", "pylate.models.Dense"), "pylate.models.Dense, which is not one of"),
        (modules(PREFIX + "Transformer", PREFIX + "Pooling"), "names a Pooling module but has no"),
        (modules(PREFIX + "Router"), "names a Router in modules.json but has no router_config.json"),
    ],
)
def test_modules(content, pattern, bert_copy):
    write(bert_copy, "modules.json", content)
    refused(pattern, load_retriever, bert_copy)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        ({"pooling_mode": "max"}, "pools by max; cls, mean and lasttoken"),
        ({"pooling_mode": ["cls", "mean"]}, r"pools by cls \+ mean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, r"pools by mean_tokens \+ max_tokens"),
        ({}, "pools by nothing"),
        ({"pooling_mode": "mean", "include_prompt": False}, "leaves the prompt out"),
    ],
)
def test_pooling(content, pattern, bert_copy):
    write(bert_copy, "modules.json", modules(PREFIX + "Transformer", PREFIX + "Pooling"))
    write(bert_copy, f"1_{PREFIX}Pooling/config.json", content)
    write(bert_copy, "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    refused(pattern, load_retriever, bert_copy)


@pytest.mark.parametrize(
    ("dense", "pattern"),
    [
        (st.Dense(32, 8), "has the activation .*Tanh"),
        (st.Dense(32, 8, activation_function=nn.Identity(), use_residual=True), "more than a linear projection"),
        (st.Dense(32, 8, activation_function=nn.Identity(), module_output_name="x"), "more than a linear projection"),
    ],
    ids=["tanh", "residual", "other-output"],
)
def test_dense(dense, pattern, tiny_bert_dir, tmp_path):
    parts = [st.Transformer(str(tiny_bert_dir)), st.Pooling(32), dense]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path))
    refused(pattern, load_retriever, tmp_path)


@pytest.fixture
def saved_dir(tiny_bert_dir, tmp_path):
    """``saved_dir(untie_encoder=True)``: a directory of ours, with a projection, to be damaged."""

    def make(**settings):
        retriever = load_retriever(
            tiny_bert_dir, add_pooler=True, projection_in_dim=32, projection_out_dim=8, **settings
        )
        directory = tmp_path / "saved"
        directory.mkdir()
        save_retriever(retriever, load_tokenizer(tiny_bert_dir), directory, RetrieverSettings(q_max_len=8, p_max_len=9))
        return directory

    return make


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("2_Dense/model.safetensors", None, "the projection's weights are missing"),
        ("2_Dense/model.safetensors", b"short", "is damaged or no file of weights"),
        ("2_Dense/config.json", None, "names a Dense module but has no"),
        ("1_Pooling/config.json", b"}", "no readable JSON"),
        ("model.safetensors", b"short", "damaged or cut short"),
    ],
)
def test_damage_in_a_tied_directory(name, content, pattern, saved_dir, tiny_bert_dir):
    directory = saved_dir()
    (directory / name).unlink() if content is None else (directory / name).write_bytes(content)
    refused(pattern, load_retriever, directory)
    refused(pattern, load_weights, load_retriever(tiny_bert_dir), directory)


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("router_config.json", None, "has no router_config.json"),
        ("router_config.json", b'{"types": {}}', "must have types and structure with routes query and document"),
        ("passage_model/config.json", None, "passage_model has no config.json"),
        ("passage_model/model.safetensors", None, "passage_model has no weights"),
        ("query_model/model.safetensors", b"short", "the weights of .*query_model are damaged"),
        ("query_pooling/config.json", None, "names a Pooling module but has no query_pooling/config.json"),
    ],
)
def test_damage_in_an_untied_directory(name, content, pattern, saved_dir):
    directory = saved_dir(untie_encoder=True)
    (directory / name).unlink() if content is None else (directory / name).write_bytes(content)
    refused(pattern, load_retriever, directory)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_may_not_be_read(name, bert_copy):
    weights = bert_copy / "model.safetensors"
    if name.endswith(".bin"):
        torch.save(load_file(weights), bert_copy / name)
        weights.unlink()
    with locked(bert_copy / name):
        refused(f"{name} cannot be read: permission denied", load_retriever, bert_copy)


def test_own_settings(saved_dir):
    directory = saved_dir()
    write(directory, "fastdense.json", {"q_max_len": "long"})
    refused("fastdense.json: q_max_len must be a whole number, not 'long'", read_settings, directory)
    write(directory, "fastdense.json", [])
    refused("fastdense.json must hold a JSON object", read_settings, directory)


def test_towers_of_different_width(saved_dir, tmp_path):
    directory = saved_dir(untie_encoder=True)
    weights = {"linear.weight": torch.zeros(5, 32), "linear.bias": torch.zeros(5)}
    save_file(weights, directory / "passage_dense" / "model.safetensors", {"format": "pt"})
    refused("queries have 8 dimensions but passages 5", load_retriever, directory)


# ---- tokenizers


@pytest.mark.parametrize(
    "content", ["", "{", '{"version": "1.0"}', "[]"], ids=["empty", "cut", "incomplete", "another kind"]
)
def test_damaged_tokenizer(content, bert_copy):
    (bert_copy / "vocab.txt").unlink()
    write(bert_copy, "tokenizer.json", content)
    refused("cannot load a tokenizer from", load_tokenizer, bert_copy)


def test_tokenizer_that_cannot_pad(bert_copy, edit_json):
    edit_json(bert_copy / "tokenizer_config.json", lambda c: c.update(pad_token=None, eos_token=None))
    refused("neither a padding nor an end-of-text token", load_tokenizer, bert_copy)


def test_a_hub_model_without_such_a_branch(tmp_path, tiny_bert_dir):
    repository = tmp_path / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    shutil.copytree(tiny_bert_dir, repository / "snapshots" / ("a" * 40))
    load_retriever("org/tiny", cache_dir=str(tmp_path))
    refused("org/tiny is no directory here", load_retriever, "org/tiny", cache_dir=str(tmp_path), revision="v9")
