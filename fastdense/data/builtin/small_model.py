"""A small BERT with random weights and a WordPiece vocabulary learnt from the training text."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_VOCABULARY_SIZE = 8000
_HIDDEN_SIZE = 256
_LAYERS = 1  # a second one costs more time than it brings in a few minutes of training
_MAX_LENGTH = 256
_SPECIAL_TOKENS = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def write_small_model(texts: Iterable[str], directory: Path) -> None:
    """Write config, weights and tokenizer that ``AutoModel`` and ``AutoTokenizer`` load. Same texts, same bytes."""
    tokenizer = _tokenizer(_learn_vocabulary(list(texts)))
    config = BertConfig(
        architectures=["BertModel"],
        vocab_size=len(tokenizer),
        hidden_size=_HIDDEN_SIZE,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        intermediate_size=2 * _HIDDEN_SIZE,
        max_position_embeddings=_MAX_LENGTH,
        hidden_dropout_prob=0.0,  # in so short a training dropout takes more than it gives (measured)
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    save_file(model.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)


def _learn_vocabulary(texts: list[str]) -> dict[str, int]:
    tokenizer = _bare_tokenizer(models.WordPiece(unk_token="[UNK]"))
    # The trainer numbers "##x" in the order of a randomly seeded hash map, and later choices hang on the numbers:
    # only when told them all beforehand does it learn the same vocabulary every time.
    characters = sorted(set("".join(tokenizer.normalizer.normalize_str(text) for text in texts)) - set(" \n\t"))
    given = [*_SPECIAL_TOKENS.values(), *(f"##{character}" for character in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_VOCABULARY_SIZE, special_tokens=given, limit_alphabet=len(characters), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    tokenizer = _bare_tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=_MAX_LENGTH, **_SPECIAL_TOKENS)


def _bare_tokenizer(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    words_of_identifiers = normalizers.Replace(Regex("(?<=[a-z0-9])(?=[A-Z])"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), words_of_identifiers, normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer
