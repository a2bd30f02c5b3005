"""Encoding: every vector is the one its text has alone, in the order of the texts."""

import numpy as np
import pytest
import torch

from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval import encode
from fastdense.retrieval.encode import TextTokenizer, autocast_dtype, check_fits, encode_texts
from fastdense.retrieval.texts import Text


@pytest.fixture
def encoder(tiny_bert_dir):
    return load_retriever(tiny_bert_dir).passage_encoder


@pytest.fixture(scope="module")
def tokenizer(tiny_bert_dir):
    return load_tokenizer(tiny_bert_dir)


@pytest.fixture
def texts(tiny_rows):
    passages = [passage for row in tiny_rows for passage in row["positive_passages"]]
    return [Text(passage["docid"], passage["text"], passage["title"]) for passage in passages]


def vector_alone(encoder, ids):
    encoder.eval()
    with torch.no_grad():
        return encoder({"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()})[0].numpy()


def test_every_vector_is_that_of_its_text_alone(encoder, tokenizer, texts):
    vectors = encode_texts(encoder, TextTokenizer(tokenizer, 24), texts, batch_size=7)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 32)
    for text, vector in zip(texts, vectors, strict=True):
        ids = tokenizer.encode(f"{text.title} {text.text}", truncation=True, max_length=24)
        np.testing.assert_allclose(vector, vector_alone(encoder, ids), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "window"), [(1, 100), (1000, 10), (7, 7), (8, 30)])
def test_batches_and_windows_change_nothing(encoder, tokenizer, texts, monkeypatch, batch_size, window):
    expected = encode_texts(encoder, TextTokenizer(tokenizer, 24), texts)
    monkeypatch.setattr(encode, "WINDOW", window)
    done = []
    vectors = encode_texts(encoder, TextTokenizer(tokenizer, 24), texts, batch_size=batch_size, on_batch=done.append)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert sum(done) == len(texts)


def test_batches_go_from_long_to_short(encoder, tokenizer, texts):
    lengths = []
    encoder.register_forward_hook(lambda _module, inputs, _output: lengths.append(inputs[0]["input_ids"].shape[1]))
    encode_texts(encoder, TextTokenizer(tokenizer, 100), texts, batch_size=5)
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_also_after_an_error(encoder, tokenizer, texts, training):
    encoder.train(training)
    encode_texts(encoder, TextTokenizer(tokenizer, 24), texts[:3])
    assert encoder.training is training
    with pytest.raises(UserError):
        encode_texts(encoder, TextTokenizer(tokenizer, 24), [Text("a", token_ids=[10**6])])
    assert encoder.training is training
    assert not any(parameter.grad is not None for parameter in encoder.parameters())


def test_bf16_is_near_float32_and_returns_float32(encoder, tokenizer, texts):
    tokenize = TextTokenizer(tokenizer, 24)
    exact = encode_texts(encoder, tokenize, texts[:8])
    rough = encode_texts(encoder, tokenize, texts[:8], precision=torch.bfloat16)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.2)


def test_a_vector_that_is_not_finite_names_its_text(encoder, tokenizer):
    willow = tokenizer.convert_tokens_to_ids("willow")
    encoder.backbone.embeddings.word_embeddings.weight.data[willow] = float("nan")
    texts = [Text("good", "amber"), Text("bad", "the willow tree"), Text("fine", "the maple")]
    with pytest.raises(UserError, match=r"the vector of the text 'bad' holds NaN or infinity: the model is damaged"):
        encode_texts(encoder, TextTokenizer(tokenizer, 24), texts)


def test_prefix_title_and_separator(tokenizer):
    tokenize = TextTokenizer(tokenizer, 20, prefix="the ", separator="sep_token")
    words = tokenizer.convert_ids_to_tokens(tokenize([Text("a", "maple", "amber"), Text("b", "maple")])[0])
    assert words == ["[CLS]", "the", "amber", "[SEP]", "maple", "[SEP]"]
    assert tokenizer.decode(tokenize([Text("b", "maple")])[0]) == "[CLS] the maple [SEP]"


def test_truncation_keeps_the_first_tokens_between_the_special_ones(tokenizer):
    text = "amber anchor apple arrow badger"
    assert tokenizer.decode(TextTokenizer(tokenizer, 5)([Text("a", text)])[0]) == "[CLS] amber anchor apple [SEP]"


def test_token_ids_and_strings_together(tokenizer):
    own = tokenizer.encode("amber apple", add_special_tokens=False)
    tokenize = TextTokenizer(tokenizer, 20)
    one, two, three = tokenize([Text("a", "amber apple"), Text("b", token_ids=own), Text("c", "willow")])
    assert one == two
    assert tokenizer.decode(three) == "[CLS] willow [SEP]"


def test_token_ids_that_do_not_fit(tokenizer):
    with pytest.raises(UserError, match="a prefix cannot be put before token ids"):
        TextTokenizer(tokenizer, 20, prefix="query: ")([Text("a", token_ids=[7])])
    with pytest.raises(UserError, match="the text 'a' holds the token id 99999, but the tokenizer has only"):
        TextTokenizer(tokenizer, 20)([Text("a", token_ids=[7, 99999])])


def test_an_empty_text_is_its_special_tokens(tokenizer, encoder):
    tokenize = TextTokenizer(tokenizer, 20)
    assert tokenizer.decode(tokenize([Text("a", "")])[0]) == "[CLS] [SEP]"
    assert np.isfinite(encode_texts(encoder, tokenize, [Text("a", "")])).all()


def test_a_length_without_room_for_text(tokenizer):
    with pytest.raises(UserError, match="--q_max_len is 2, but the tokenizer adds 2 special tokens"):
        TextTokenizer(tokenizer, 2, flag="q_max_len")


def test_a_length_beyond_the_models_positions(encoder, tokenizer):
    check_fits(encoder, TextTokenizer(tokenizer, 160))
    with pytest.raises(UserError, match="--p_max_len is 161, but the model has only 160 positions"):
        check_fits(encoder, TextTokenizer(tokenizer, 161))


def test_a_tokenizer_with_more_tokens_than_the_model(encoder, tiny_bert_dir):
    tokenizer = load_tokenizer(tiny_bert_dir)
    tokenizer.add_tokens(["brandnew"])
    with pytest.raises(UserError, match="pass the --tokenizer_name that belongs to the model"):
        check_fits(encoder, TextTokenizer(tokenizer, 20))


def test_precisions():
    cpu = torch.device("cpu")
    assert autocast_dtype(False, False, cpu) is None
    assert autocast_dtype(False, True, cpu) is torch.bfloat16
    assert autocast_dtype(True, False, torch.device("cuda")) is torch.float16
    with pytest.raises(UserError, match="--fp16 needs a GPU"):
        autocast_dtype(True, False, cpu)
    with pytest.raises(UserError, match="exclude each other"):
        autocast_dtype(True, True, cpu)
