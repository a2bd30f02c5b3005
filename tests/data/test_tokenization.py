"""Special tokens and text rules, for tokenizers of several families."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastdense.data.collation import pad_token_id
from fastdense.data.tokenization import SpecialTokens, _tokenizer_identity, passage_text, resolve_separator, token_ids
from fastdense.errors import UserError

WORDS = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "text", "a", "0", "river", "bridge"])}


def word_tokenizer(template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """One token a word, and ``template`` around a text, as ``"<s> $A </s>"``."""
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        names = [name for name in template.split() if name != "$A"]
        backend.post_processor = processors.TemplateProcessing(
            template, special_tokens=[(n, WORDS[n]) for n in set(names)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **special)


def test_bert(tokenizer: Any) -> None:
    special_tokens = SpecialTokens.of(tokenizer)
    assert special_tokens == SpecialTokens((tokenizer.cls_token_id,), (tokenizer.sep_token_id,))


@pytest.mark.parametrize(
    ("template", "prefix", "suffix"),
    [
        (None, (), ()),
        ("<s> $A </s>", (1,), (2,)),
        ("<s> $A", (1,), ()),
        ("$A </s>", (), (2,)),
        ("<s> <s> $A </s> </s>", (1, 1), (2, 2)),
    ],
)
def test_templates(template: str | None, prefix: tuple, suffix: tuple) -> None:
    assert SpecialTokens.of(word_tokenizer(template)) == SpecialTokens(prefix, suffix)


def test_framing_equals_the_tokenizer_s_own(tokenizer: Any) -> None:
    special_tokens = SpecialTokens.of(tokenizer)
    for text in ("castle", "who built the castle of stone", "amber anchor apple arrow badger basket beacon birch"):
        own = tokenizer(text, truncation=True, max_length=7)["input_ids"]
        assert special_tokens.frame(token_ids(tokenizer, [text])[0], 7) == own
        assert special_tokens.frame(token_ids(tokenizer, [text])[0][:7], 7) == own, "rows are cut to 7 ids before"


def byte_pair_tokenizer() -> PreTrainedTokenizerFast:
    """RoBERTa's kind: byte-level pairs, where a leading space belongs to a word, and <s> ... </s> around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["who built the castle of stone"] * 3, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def sentence_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Llama's kind: words marked by what precedes them, <s> before a text, no padding token."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in "▁ who▁buildstheca")]
    backend = Tokenizer(models.Unigram(list(dict.fromkeys(pieces)), unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("build", [byte_pair_tokenizer, sentence_piece_tokenizer])
@pytest.mark.parametrize("max_length", [4, 9, 100])
def test_framing_in_other_families(build: Callable[[], PreTrainedTokenizerFast], max_length: int) -> None:
    tokenizer = build()
    special_tokens = SpecialTokens.of(tokenizer)
    assert special_tokens.prefix == (tokenizer.bos_token_id,)
    for text in ("who built the castle", " the castle", "é"):
        own = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        assert special_tokens.frame(token_ids(tokenizer, [text])[0], max_length) == own


def test_no_special_tokens_are_cut_to_the_full_length() -> None:
    assert SpecialTokens((), ()).frame([5, 6, 7], 2) == [5, 6]


def test_a_tokenizer_that_changes_the_text() -> None:
    tokenizer = word_tokenizer("</s> </s>")
    with pytest.raises(UserError, match="tokenizes a text differently with and without special tokens"):
        SpecialTokens.of(tokenizer)


def test_a_tokenizer_s_identity_is_its_vocabulary_and_rules(tiny_bert_dir: Path) -> None:
    used = AutoTokenizer.from_pretrained(tiny_bert_dir)
    before = _tokenizer_identity(used)
    used(["a text", "another"], padding=True, truncation=True, max_length=3)
    assert used.backend_tokenizer.truncation, "or the test shows nothing"
    assert _tokenizer_identity(used) == before
    used.add_tokens(["entirely-new"])
    assert _tokenizer_identity(used) != before


def test_long_texts_are_tokenized_whole_without_a_warning(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert len(token_ids(tokenizer, ["castle " * 1000])[0]) == 1000
    assert not caplog.records


@pytest.mark.parametrize(
    ("separator", "expected"), [(" ", " "), ("sep_token", "[SEP]"), (" - ", " - "), ("pad", "pad"), ("", "")]
)
def test_separator(tokenizer: Any, separator: str, expected: str) -> None:
    assert resolve_separator(tokenizer, separator) == expected


def test_separator_that_the_tokenizer_lacks() -> None:
    with pytest.raises(UserError, match="--passage_field_separator names the tokenizer's sep_token"):
        resolve_separator(word_tokenizer(None), "sep_token")


@pytest.mark.parametrize(("title", "expected"), [("T", "T-text"), (None, "text"), ("", "-text")])
def test_passage_text(title: str | None, expected: str) -> None:
    assert passage_text(title, "text", "-") == expected


@pytest.mark.parametrize(
    ("special", "expected"),
    [({"pad_token": "<pad>", "eos_token": "</s>"}, 0), ({"eos_token": "</s>"}, 2), ({}, 0)],
)
def test_padding_id(special: dict[str, str], expected: int) -> None:
    assert pad_token_id(word_tokenizer(None, **special)) == expected
