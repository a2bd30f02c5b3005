"""What each kind of model directory loads as, and how the flags change it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from torch import nn
from transformers import AutoModel

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever, load_weights
from fastdense.modeling.save import save_retriever
from fastdense.modeling.settings import RetrieverSettings, read_settings
from fastdense.modeling.tokenizer import load_tokenizer


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def parted(directory, **settings):
    """A retriever with separate encoders whose weights differ."""
    retriever = load_retriever(directory, untie_encoder=True, **settings)
    with torch.no_grad():
        for parameter in retriever.passage_encoder.parameters():
            parameter.add_(0.1)
    return retriever


@pytest.fixture
def tevatron_dir(tiny_bert_dir, tmp_path):
    """``tevatron_dir(untied, pooler)``: a directory as v1 leaves it, and the retriever it stands for."""

    def make(untied: bool, pooler: bool, normalize: bool = False):
        settings = {"add_pooler": pooler, "projection_in_dim": 32, "projection_out_dim": 8, "normalize": normalize}
        retriever = parted(tiny_bert_dir, **settings) if untied else load_retriever(tiny_bert_dir, **settings)
        directory = tmp_path / "v1"
        folders = ["query_model", "passage_model"] if untied else [""]
        for folder, encoder in zip(folders, retriever.encoders, strict=True):
            encoder.backbone.save_pretrained(directory / folder)
        if pooler:
            layers = nn.ModuleDict({"linear_q": retriever.query_encoder.projection})
            layers["linear_p"] = retriever.passage_encoder.projection
            torch.save(layers.state_dict(), directory / "pooler.pt")
            config = {"input_dim": 32, "output_dim": 8, "tied": not untied}
            if normalize:
                config["normalize"] = True
            (directory / "pooler_config.json").write_text(json.dumps(config))
        load_tokenizer(tiny_bert_dir).save_pretrained(directory)
        return directory, retriever

    return make


@pytest.fixture
def hub_cache(tiny_bert_dir, tmp_path):
    """A Hugging Face cache that holds the tiny BERT as org/tiny, with a branch "mean" that pools by mean."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for branch, commit in (("main", "a" * 40), ("mean", "b" * 40)):
        (repository / "refs" / branch).write_text(commit)
        shutil.copytree(tiny_bert_dir, repository / "snapshots" / commit)
    model = SentenceTransformer(str(tiny_bert_dir), device="cpu")
    shutil.rmtree(repository / "snapshots" / ("b" * 40))
    model.save(str(repository / "snapshots" / ("b" * 40)))
    return tmp_path / "hub"


# ---- the flags on a bare Hugging Face model


def test_bare_model_is_tied_and_pools_the_first_token(tiny_bert_dir):
    retriever = load_retriever(tiny_bert_dir)
    encoder = retriever.query_encoder
    assert retriever.tied
    assert (encoder.pooling, encoder.projection, encoder.normalize, encoder.dimension) == ("cls", None, False, 32)
    assert retriever.training
    assert same(state(encoder.backbone), state(AutoModel.from_pretrained(tiny_bert_dir)))
    assert read_settings(tiny_bert_dir) is None


def test_untie_encoder_makes_two_equal_copies(tiny_bert_dir):
    retriever = load_retriever(
        tiny_bert_dir, untie_encoder=True, add_pooler=True, projection_in_dim=32, projection_out_dim=8
    )
    query, passage = retriever.query_encoder, retriever.passage_encoder
    assert not retriever.tied
    assert same(state(query), state(passage))
    assert {id(p) for p in query.parameters()}.isdisjoint({id(p) for p in passage.parameters()})
    assert query.projection.out_features == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_in_float32(dtype, tiny_bert_dir, tmp_path):
    """The library's default would silently train in the file's precision."""
    backbone = AutoModel.from_pretrained(tiny_bert_dir, dtype=dtype)
    backbone.save_pretrained(tmp_path)
    retriever = load_retriever(tmp_path)
    assert {p.dtype for p in retriever.parameters()} == {torch.float32}
    expected = backbone.embeddings.word_embeddings.weight.float()
    assert torch.equal(retriever.query_encoder.backbone.embeddings.word_embeddings.weight, expected)


def test_attn_implementation_reaches_the_backbone(tiny_bert_dir):
    assert load_retriever(tiny_bert_dir, attn_implementation="eager").config._attn_implementation == "eager"
    assert load_retriever(tiny_bert_dir, attn_implementation="sdpa").config._attn_implementation == "sdpa"


def test_config_name_overrides_the_models_own(tiny_bert_dir, bert_copy, edit_json):
    edit_json(bert_copy / "config.json", lambda config: config.update(hidden_dropout_prob=0.25))
    assert load_retriever(tiny_bert_dir, config_name=str(bert_copy)).config.hidden_dropout_prob == 0.25


def test_a_missing_unused_pooler_is_no_fault(tiny_bert_dir, tmp_path):
    """As in a model that was pretrained with masked language modelling alone."""
    from transformers import BertModel

    BertModel.from_pretrained(tiny_bert_dir, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_retriever(tmp_path).tied


# ---- directories of ours and of Tevatron


def test_untied_directory_loads_untied_without_being_asked(tiny_bert_dir, tmp_path):
    retriever = parted(tiny_bert_dir)
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path, RetrieverSettings())
    for untie in (False, True):
        again = load_retriever(tmp_path, untie_encoder=untie)
        assert not again.tied
        assert same(state(again), state(retriever))


def test_flags_win_over_the_directory(tiny_bert_dir, tmp_path):
    retriever = load_retriever(tiny_bert_dir, pooling="mean", normalize=True)
    save_retriever(retriever, load_tokenizer(tiny_bert_dir), tmp_path, RetrieverSettings())
    again = load_retriever(tmp_path).query_encoder
    assert (again.pooling, again.normalize) == ("mean", True)
    again = load_retriever(tmp_path, pooling="last", normalize=False).query_encoder
    assert (again.pooling, again.normalize) == ("last", False)


@pytest.mark.parametrize(
    ("untied", "pooler", "add_pooler"),
    [(False, True, False), (False, True, True), (True, False, False), (True, True, False), (True, True, True)],
)
def test_tevatron_directory(untied, pooler, add_pooler, tevatron_dir):
    """Its projection is there with or without the flag; the flags' default widths do not matter then."""
    directory, retriever = tevatron_dir(untied, pooler)
    again = load_retriever(directory, add_pooler=add_pooler)
    assert again.tied is (not untied)
    assert same(state(again), state(retriever))
    settings = read_settings(directory)
    assert (settings.pooling, settings.tied) == ("cls", not untied)
    assert (settings.projection_in_dim, settings.projection_out_dim) == ((32, 8) if pooler else (None, None))


def test_tevatron_pooler_says_whether_to_normalize(tevatron_dir):
    directory, _ = tevatron_dir(untied=False, pooler=True, normalize=True)
    assert load_retriever(directory).query_encoder.normalize
    assert read_settings(directory).normalize
    assert not load_retriever(directory, normalize=False).query_encoder.normalize


def test_untie_encoder_copies_the_saved_projection(tevatron_dir):
    directory, retriever = tevatron_dir(untied=False, pooler=True)
    again = load_retriever(directory, untie_encoder=True, add_pooler=True)
    assert not again.tied
    assert same(state(again.query_encoder), state(retriever.query_encoder))
    assert same(state(again.passage_encoder), state(retriever.query_encoder))


def test_other_widths_than_the_saved_projection_are_refused(tevatron_dir):
    directory, _ = tevatron_dir(untied=False, pooler=True)
    with pytest.raises(UserError, match=r"--projection_out_dim 4 differ .* \(32 to 8\)"):
        load_retriever(directory, add_pooler=True, projection_in_dim=32, projection_out_dim=4)
    assert load_retriever(directory, add_pooler=True, projection_in_dim=32, projection_out_dim=8).tied


# ---- sentence-transformers directories


@pytest.mark.parametrize(("mode", "pooling"), [("cls", "cls"), ("mean", "mean"), ("lasttoken", "last")])
def test_sentence_transformers_directory(mode, pooling, tiny_bert_dir, batch, texts, tmp_path):
    modules = [st.Transformer(str(tiny_bert_dir)), st.Pooling(32, pooling_mode=mode)]
    modules += [st.Dense(32, 8, activation_function=nn.Identity(), bias=False), st.Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"query": "q: ", "passage": "p: "}, device="cpu")
    model.max_seq_length = 24
    model.save(str(tmp_path))
    retriever = load_retriever(tmp_path).eval()
    encoder = retriever.query_encoder
    assert (encoder.pooling, encoder.normalize, encoder.dimension) == (pooling, True, 8)
    settings = read_settings(tmp_path)
    assert (settings.query_prefix, settings.passage_prefix, settings.p_max_len) == ("q: ", "p: ", 24)
    with torch.no_grad():
        query = retriever(query=batch(load_tokenizer(tmp_path), ["q: " + text for text in texts], 24))[0]
    torch.testing.assert_close(torch.from_numpy(model.encode_query(texts)), query, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ({"any": "text: ", "query": "q: "}, ("q: ", "text: ")),
        ({"any": "text: ", "passage": "p: "}, ("text: ", "p: ")),
        ({"any": "text: ", "query": "q: ", "document": "", "corpus": "c: "}, ("q: ", "c: ")),
    ],
)
def test_default_prompt_stands_for_missing_ones(prompts, expected, bert_copy):
    SentenceTransformer(str(bert_copy), device="cpu").save(str(bert_copy / "st"))
    config = {"prompts": prompts, "default_prompt_name": "any"}
    (bert_copy / "st" / "config_sentence_transformers.json").write_text(json.dumps(config))
    settings = read_settings(bert_copy / "st")
    assert (settings.query_prefix, settings.passage_prefix) == expected


def test_backbone_in_a_folder(bert_copy, tmp_path):
    """Old releases put it into 0_Transformer/."""
    saved = tmp_path / "old"
    shutil.copytree(bert_copy, saved / "0_Transformer")
    (saved / "1_Pooling").mkdir()
    (saved / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    types = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in types.items()]
    (saved / "modules.json").write_text(json.dumps(modules))
    assert load_retriever(saved).query_encoder.pooling == "mean"
    assert len(load_tokenizer(saved)) == len(load_tokenizer(bert_copy))


# ---- the hub


def test_hub_model_from_the_cache(hub_cache, tiny_bert_dir):
    retriever = load_retriever("org/tiny", cache_dir=str(hub_cache))
    assert same(state(retriever), state(load_retriever(tiny_bert_dir)))
    assert len(load_tokenizer("org/tiny", cache_dir=str(hub_cache))) == len(load_tokenizer(tiny_bert_dir))
    assert read_settings("org/tiny", cache_dir=str(hub_cache)) is None


def test_model_revision_picks_the_branch(hub_cache):
    retriever = load_retriever("org/tiny", cache_dir=str(hub_cache), revision="mean")
    assert retriever.query_encoder.pooling == "mean"
    assert read_settings("org/tiny", cache_dir=str(hub_cache), revision="mean").pooling == "mean"


# ---- tokenizers


def test_decoders_pad_with_their_end_of_text(bert_copy, edit_json):
    edit_json(bert_copy / "tokenizer_config.json", lambda c: c.update(pad_token=None, eos_token="[SEP]"))
    tokenizer = load_tokenizer(bert_copy)
    assert tokenizer.pad_token == "[SEP]"


def test_load_weights_of_another_shape_is_refused(tiny_bert_dir, tmp_path):
    settings = {"add_pooler": True, "projection_in_dim": 32}
    tokenizer = load_tokenizer(tiny_bert_dir)
    wide = load_retriever(tiny_bert_dir, projection_out_dim=16, **settings)
    save_retriever(wide, tokenizer, tmp_path, RetrieverSettings())
    for other in (
        load_retriever(tiny_bert_dir),
        load_retriever(tiny_bert_dir, projection_out_dim=8, **settings),
        load_retriever(tiny_bert_dir, projection_out_dim=16, untie_encoder=True, **settings),
    ):
        before = state(other)
        with pytest.raises(UserError, match="another kind of model"):
            load_weights(other, tmp_path)
        assert same(state(other), before)


def test_directories_may_be_paths_or_strings(tiny_bert_dir):
    assert same(state(load_retriever(str(tiny_bert_dir))), state(load_retriever(Path(tiny_bert_dir))))
