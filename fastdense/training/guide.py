"""``--guide_model``: another model that decides which passages are false negatives, and is not trained itself."""

from dataclasses import replace
from typing import Any

from fastdense.data.tokenization import SpecialTokens
from fastdense.errors import UserError
from fastdense.modeling.load import load_retriever
from fastdense.modeling.settings import RetrieverSettings
from fastdense.modeling.tokenizer import load_tokenizer
from fastdense.retrieval.encode import check_fits
from fastdense.training.arguments import ContrastiveArguments, ModelArguments, RetrieverTrainingArguments
from fastdense.training.evaluation import text_tokenizers
from fastdense.training.step import ContrastiveStep


def with_guide(
    step: ContrastiveStep,
    contrastive: ContrastiveArguments,
    model: ModelArguments,
    args: RetrieverTrainingArguments,
    tokenizer: Any,
    settings: RetrieverSettings,
) -> ContrastiveStep:
    """The step with its guide on the device of training, if there is to be one.

    Raises:
        UserError: it cannot be loaded, reads other tokens than the model, or not as many.
    """
    name = contrastive.guide_model
    if name is None:
        return step
    try:
        source: dict[str, Any] = {"cache_dir": model.cache_dir, "trust_remote_code": model.trust_remote_code}
        guide, own = load_retriever(name, **source), load_tokenizer(name, **source)
        if own.get_vocab() != tokenizer.get_vocab() or SpecialTokens.of(own) != SpecialTokens.of(tokenizer):
            raise UserError(
                "its tokenizer is not that of the model, whose token ids it would read: choose a guide of the same "
                "family, or score the rows with it beforehand and mine with a margin (python -m fastdense.mine)"
            )
        for encoder, tokenize in zip(
            (guide.query_encoder, guide.passage_encoder), text_tokenizers(tokenizer, settings), strict=True
        ):
            check_fits(encoder, tokenize)
    except UserError as error:
        raise UserError(f"--guide_model {name}: {error}") from error
    return replace(step, guide=guide.requires_grad_(False).eval().to(args.device))
