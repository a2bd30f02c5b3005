"""A saved retriever loads in sentence-transformers, AutoModel and here, and gives the same vectors."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from fastdense.files import atomic_directory
from fastdense.modeling.load import load_retriever, load_weights
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer

PREFIXES = [("", ""), ("find: ", "read : ")]
VARIANTS = list(itertools.product([False, True], [False, True], [False, True], ["cls", "mean", "last"], PREFIXES))
WITHOUT_PREFIXES = [variant[:4] for variant in VARIANTS[:: len(PREFIXES)]]
SHAPES = list(itertools.product([False, True], [False, True]))
Q_MAX, P_MAX = 12, 20


def make_retriever(directory, untied=False, projection=False, normalize=False, pooling="cls"):
    """A retriever whose two encoders differ if untied, as after training."""
    retriever = load_retriever(
        directory,
        untie_encoder=untied,
        add_pooler=projection,
        projection_in_dim=32,
        projection_out_dim=16,
        normalize=normalize,
        pooling=pooling,
    )
    if untied:
        with torch.no_grad():
            for parameter in retriever.passage_encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return retriever.eval()


def save(retriever, tokenizer, directory, **settings) -> Path:
    settings = {"q_max_len": Q_MAX, "p_max_len": P_MAX, **settings}
    with atomic_directory(directory) as temporary:
        save_retriever(retriever, tokenizer, temporary, RetrieverSettings(**settings))
    return directory


def digest(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(("untied", "projection", "normalize", "pooling", "prefixes"), VARIANTS)
def test_sentence_transformers_gives_the_same_vectors(
    untied, projection, normalize, pooling, prefixes, tiny_bert_dir, batch, texts, tmp_path
):
    retriever = make_retriever(tiny_bert_dir, untied, projection, normalize, pooling)
    tokenizer = load_tokenizer(tiny_bert_dir)
    query_prefix, passage_prefix = prefixes
    directory = save(retriever, tokenizer, tmp_path / "saved", query_prefix=query_prefix, passage_prefix=passage_prefix)
    longest_query = Q_MAX if untied else P_MAX  # a shared sentence-transformers module has one length
    with torch.no_grad():
        query = retriever(query=batch(tokenizer, [query_prefix + t for t in texts], longest_query))[0]
        passage = retriever(passage=batch(tokenizer, [passage_prefix + t for t in texts], P_MAX))[1]
    model = SentenceTransformer(str(directory), device="cpu")
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(torch.from_numpy(model.encode_query(texts)), query, **close)
    torch.testing.assert_close(torch.from_numpy(model.encode_document(texts)), passage, **close)
    torch.testing.assert_close(torch.from_numpy(model.encode(texts, prompt_name="document")), passage, **close)
    assert model.max_seq_length == P_MAX
    assert model.prompts == {"query": query_prefix, "document": passage_prefix}
    assert model.similarity_fn_name == ("cosine" if normalize else "dot")


@pytest.mark.parametrize(("untied", "projection", "normalize", "pooling"), WITHOUT_PREFIXES)
def test_loading_what_was_saved_changes_no_bit(untied, projection, normalize, pooling, tiny_bert_dir, tmp_path):
    retriever = make_retriever(tiny_bert_dir, untied, projection, normalize, pooling)
    settings = RetrieverSettings("find: ", "read : ", Q_MAX, P_MAX, "sep_token", "bert-base-uncased")
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path, settings)
    again = load_retriever(tmp_path)
    assert again.tied is (not untied)
    assert again.state_dict().keys() == retriever.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in retriever.state_dict().items())
    for old, new in zip(retriever.encoders, again.encoders, strict=True):
        assert (new.pooling, new.normalize) == (old.pooling, old.normalize)
    assert read_settings(tmp_path) == settings.describing(retriever)


@pytest.mark.parametrize(("untied", "projection"), SHAPES)
def test_auto_model_and_auto_tokenizer_load_every_backbone(untied, projection, tiny_bert_dir, batch, texts, tmp_path):
    retriever = make_retriever(tiny_bert_dir, untied, projection)
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    folders = ["query_model", "passage_model"] if untied else [""]
    for folder, encoder in zip(folders, retriever.encoders, strict=True):
        backbone = AutoModel.from_pretrained(directory / folder).eval()
        inputs = batch(AutoTokenizer.from_pretrained(directory / folder), texts)
        with torch.no_grad():
            vector = backbone(**inputs).last_hidden_state[:, 0]
            vector = vector if encoder.projection is None else encoder.projection(vector)
            assert torch.equal(vector, encoder(inputs))
    assert AutoTokenizer.from_pretrained(directory).get_vocab() == load_tokenizer(tiny_bert_dir).get_vocab()


@pytest.mark.parametrize("untied", [False, True])
def test_tevatron_finds_its_pooler(untied, tiny_bert_dir, tmp_path):
    retriever = make_retriever(tiny_bert_dir, untied, projection=True)
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    weights = torch.load(directory / "pooler.pt", weights_only=True)
    assert torch.equal(weights["linear_q.weight"], retriever.query_encoder.projection.weight)
    assert torch.equal(weights["linear_p.bias"], retriever.passage_encoder.projection.bias)
    config = json.loads((directory / "pooler_config.json").read_text())
    assert config == {"input_dim": 32, "output_dim": 16, "tied": not untied}


@pytest.mark.parametrize(("untied", "projection"), SHAPES)
def test_same_retriever_same_bytes(untied, projection, tiny_bert_dir, batch, texts, tmp_path):
    """Also when the tokenizer has been used in between: its last padding and truncation are not saved."""
    retriever = make_retriever(tiny_bert_dir, untied, projection, normalize=True)
    tokenizer = load_tokenizer(tiny_bert_dir)
    first = digest(save(retriever, tokenizer, tmp_path / "first"))
    batch(tokenizer, texts, 5)
    assert digest(save(retriever, tokenizer, tmp_path / "second")) == first
    again = load_retriever(tmp_path / "first")
    third = digest(save(again, load_tokenizer(tmp_path / "first"), tmp_path / "third"))
    assert {name: value for name, value in third.items() if "config" not in name} == {
        name: value for name, value in first.items() if "config" not in name
    }


def test_saving_leaves_the_tokenizer_as_it_was(tiny_bert_dir, batch, texts, tmp_path):
    tokenizer = load_tokenizer(tiny_bert_dir)
    batch(tokenizer, texts, 5)
    before = tokenizer.backend_tokenizer.to_str()
    save(make_retriever(tiny_bert_dir), tokenizer, tmp_path / "saved")
    assert tokenizer.backend_tokenizer.to_str() == before
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["truncation"] is None


def test_weights_keep_their_precision(tiny_bert_dir, tmp_path):
    retriever = make_retriever(tiny_bert_dir, projection=True).to(torch.bfloat16)
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert {value.dtype for value in load_file(directory / name).values()} == {torch.bfloat16}
    loaded = load_retriever(directory)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.query_encoder.projection.weight, retriever.query_encoder.projection.weight.float())


@pytest.mark.parametrize("module_type", ["legacy", "current"])
def test_module_types_are_those_every_release_loads(module_type, tiny_bert_dir, tmp_path):
    """What sentence-transformers 6 writes itself is not loaded by 5; ours is, and both are read here."""
    retriever = make_retriever(tiny_bert_dir, untied=True, projection=True, normalize=True, pooling="last")
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    if module_type == "current":
        SentenceTransformer(str(directory), device="cpu").save(str(tmp_path / "resaved"))
        directory = tmp_path / "resaved"
        assert "sentence_transformers.models" not in (directory / "modules.json").read_text()
    else:
        types = json.loads((directory / "router_config.json").read_text())["types"].values()
        assert all(name.startswith("sentence_transformers.models.") for name in types)
    again = load_retriever(directory)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in retriever.state_dict().items())
    assert (again.query_encoder.pooling, again.query_encoder.normalize, again.tied) == ("last", True, False)


@pytest.mark.parametrize(("untied", "projection"), SHAPES)
def test_load_weights_restores_in_place(untied, projection, tiny_bert_dir, tmp_path):
    retriever = make_retriever(tiny_bert_dir, untied, projection)
    saved = {name: value.clone() for name, value in retriever.state_dict().items()}
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    parameters = list(retriever.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    load_weights(retriever, directory)
    assert all(a is b for a, b in zip(retriever.parameters(), parameters, strict=True))
    assert all(torch.equal(retriever.state_dict()[name], value) for name, value in saved.items())


def test_load_weights_draws_no_random_numbers(tiny_bert_dir, tmp_path):
    """Not even for a part that the directory lacks, BERT's unused pooler: dropout must go on as it was."""
    retriever = make_retriever(tiny_bert_dir)
    directory = save(retriever, load_tokenizer(tiny_bert_dir), tmp_path / "saved")
    weights = load_file(directory / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    before = torch.random.get_rng_state()
    load_weights(retriever, directory)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_model_card(tiny_bert_dir, tmp_path):
    retriever = make_retriever(tiny_bert_dir, projection=True, normalize=True)
    tokenizer = load_tokenizer(tiny_bert_dir)
    save(retriever, tokenizer, tmp_path / "saved", base_model="bert-base-uncased", query_prefix='ask "x": ')
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    assert 'base_model: "bert-base-uncased"' in card
    assert "encode_query" in card
    assert "| Dimensions | 16 |" in card
    assert str(tmp_path) not in card
    save(retriever, tokenizer, tmp_path / "local", base_model=str(tiny_bert_dir))
    assert "base_model:" not in (tmp_path / "local" / "README.md").read_text(), "a path is no model of the hub"
