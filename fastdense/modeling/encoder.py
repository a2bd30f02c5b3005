"""The retriever as a module: an encoder for queries and one for passages, often the same."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastdense.errors import UserError
from fastdense.modeling.pooling import POOLINGS, pool

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Backbone, pooling, projection (or None) and normalization (or not), in this order."""

    def __init__(
        self, backbone: "PreTrainedModel", pooling: str, projection: nn.Linear | None = None, normalize: bool = False
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"--pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.backbone = backbone
        self.pooling = pooling
        self.projection = projection
        self.normalize = normalize
        self._accepted = _accepted_arguments(backbone)
        freeze_unused_pooler(backbone)

    @property
    def dimension(self) -> int:
        """Width D of the vectors."""
        return self.projection.out_features if self.projection is not None else self.backbone.config.hidden_size

    @property
    def max_length(self) -> int | None:
        """Most tokens of a text that the backbone has positions for; None if it does not say."""
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
                # RoBERTa and its relatives number tokens from padding_idx + 1: 514 rows are 512 positions.
                return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        return getattr(self.backbone.config, "max_position_embeddings", None)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Encode a batch of texts.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` [B, L], int64, and whatever else the backbone takes
                (``token_type_ids``); entries that it does not take are left out.

        Returns:
            Vectors [B, D] of the backbone's dtype (autocast's rules apply).
        """
        arguments: dict[str, Any] = {name: value for name, value in inputs.items() if name in self._accepted}
        if "use_cache" in self._accepted:
            arguments["use_cache"] = False  # decoders would keep keys and values that nobody reads
        hidden = getattr(self.backbone(**arguments), "last_hidden_state", None)
        if hidden is None:
            kind = type(self.backbone).__name__
            raise UserError(f"{kind} gives no token states (last_hidden_state) to pool: use a plain encoder model")
        vector = pool(hidden, inputs["attention_mask"], self.pooling)
        if self.projection is not None:
            vector = self.projection(vector)
        return F.normalize(vector, p=2, dim=-1) if self.normalize else vector


class Retriever(nn.Module):
    """Query encoder and passage encoder; tied when both are the same object."""

    def __init__(self, query_encoder: Encoder, passage_encoder: Encoder):
        super().__init__()
        self.query_encoder = query_encoder
        self.passage_encoder = passage_encoder

    @property
    def tied(self) -> bool:
        """Whether queries and passages share all weights."""
        return self.query_encoder is self.passage_encoder

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders, each once: one if tied, else query's and passage's."""
        return (self.query_encoder,) if self.tied else (self.query_encoder, self.passage_encoder)

    @property
    def config(self) -> Any:
        """The (query) backbone's configuration."""
        return self.query_encoder.backbone.config

    def forward(
        self, query: Mapping[str, Tensor] | None = None, passage: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Encode queries into [N, D] and passages into [M, D]; what is not given stays None.

        Both in one call, so that the two towers of an untied retriever take part in one gradient reduction.
        """
        query_vectors = None if query is None else self.query_encoder(query)
        passage_vectors = None if passage is None else self.passage_encoder(passage)
        return query_vectors, passage_vectors

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute the backbones' activations in the backward pass instead of keeping them.

        ``options`` are those of ``PreTrainedModel.activation_checkpointing_enable``. Raises UserError for a backbone
        that cannot.
        """
        settings = activation_checkpointing_kwargs or {"use_reentrant": False}
        for encoder in self.encoders:
            if not encoder.backbone.supports_gradient_checkpointing:
                raise UserError(f"--gradient_checkpointing: {type(encoder.backbone).__name__} does not support it")
            if hasattr(encoder.backbone, "activation_checkpointing_enable"):
                encoder.backbone.activation_checkpointing_enable(settings, **options)
            else:  # transformers before the name changed
                encoder.backbone.gradient_checkpointing_enable(settings, **options)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """The older name of :meth:`activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs)


def _accepted_arguments(backbone: "PreTrainedModel") -> frozenset[str]:
    return frozenset(inspect.signature(backbone.forward).parameters)


def freeze_unused_pooler(backbone: "PreTrainedModel") -> None:
    """BERT and its relatives bring a pooler for next-sentence prediction, which nothing here reads.

    Its weights stay in the saved model, but DDP must not wait for gradients that never come.
    """
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
