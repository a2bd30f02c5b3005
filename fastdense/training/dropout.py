"""Dropout on a CPU, several times faster than torch's and without masks in memory.

torch draws a mask one number after the other and keeps it, in float32, for the backward pass: in BERT's training on a
CPU that is a sixth of the time and a quarter of the activations. Here the numbers come from a generator without state
(csrc/cpu/gemm/dropout.inc), on all threads, and the backward pass makes them again from a seed. The seed is drawn from
torch's generator, so that a run's seed, its checkpoints and the gradient cache's replay decide about masks as ever.

Attention's dropout is inside torch's ``scaled_dot_product_attention``, which has no fast kernel for it on a CPU. So it
gets a function of its own (:func:`attention`), by transformers' attention interface.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fastdense.loss.implementations import native

ATTENTION = "fastdense_cpu"


def dropout(values: Tensor, p: float) -> Tensor:
    """Each value times 0 with probability ``p`` (to 2^-32), else times 1 / (1 - p): what ``F.dropout`` does.

    Args:
        values: any shape, on a CPU; computed in float32, to which float64 is rounded, and rounded to their dtype once.
        p: in [0, 1).
    """
    result: Tensor = _Dropout.apply(values, p)
    return result


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        ctx.p, ctx.seed = p, _draw_seed()
        return _drop(values, ctx.p, ctx.seed, values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _drop(gradient, ctx.p, ctx.seed, gradient.dtype), None


def _draw_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_())


def _drop(values: Tensor, p: float, seed: int, dtype: torch.dtype) -> Tensor:
    if values.dtype != torch.bfloat16:  # which the operator reads and writes, beside float32
        values = values.float()
    dropped: Tensor = torch.ops.fastdense.dropout_native(values.contiguous(), p, seed, dtype == torch.bfloat16)
    return dropped.to(dtype)


class CpuDropout(nn.Dropout):
    """``nn.Dropout`` with :func:`dropout` where it applies: in training, on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not 0 < self.p < 1 or input.device.type != "cpu" or not input.is_floating_point():
            return super().forward(input)
        return dropout(input, self.p)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """``dropout(softmax(scaling * query @ key^T + mask)) @ value``; torch's own attention where nothing is dropped.

    Args:
        query, key, value: [batch, heads, length, width].
        attention_mask: bool (true: attend) or added to the scores; broadcast to [batch, heads, length, length].

    Returns:
        [batch, length, heads, width], and None in the place of the weights.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unmasked = attention_mask is None and causal and query.shape[2] > 1
    biased = position_bias is not None or (attention_mask is not None and attention_mask.requires_grad)
    if not 0 < dropout < 1 or unmasked or biased or key.shape[1] != query.shape[1]:
        own = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "position_bias": position_bias}
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **own, **others)
        return output
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: Tensor = _DroppedAttention.apply(query, key, value, attention_mask, scale, dropout)
    return attended.transpose(1, 2).contiguous(), None


class _DroppedAttention(torch.autograd.Function):
    """Keeps the weights before dropout; those after it follow from the seed.

    Heads' rows are gathered once, the query's scaled: products of what lies apart would copy it each time.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, p: float
    ) -> Tensor:
        scaled = torch.mul(query, scale, out=query.new_empty(query.shape))
        key, value = key.contiguous(), value.contiguous()
        scores = scaled @ key.transpose(2, 3)
        if mask is not None and mask.dtype == torch.bool:
            # Not minus infinity: a row of padding that may attend to nothing would become nan.
            scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores += mask
        weights = F.softmax(scores, dim=-1, dtype=torch.float32)
        ctx.save_for_backward(scaled, key, value, weights)
        ctx.scale, ctx.p, ctx.seed = scale, p, _draw_seed()
        return _drop(weights, p, ctx.seed, value.dtype) @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        dropped = _drop(weights, ctx.p, ctx.seed, value.dtype)
        weights_grad = _drop(gradient @ value.transpose(2, 3), ctx.p, ctx.seed, torch.float32)
        scores_grad = torch.ops.aten._softmax_backward_data(weights_grad, weights, -1, torch.float32).to(key.dtype)
        query_grad = (scores_grad @ key).mul_(ctx.scale)
        return query_grad, scores_grad.transpose(2, 3) @ scaled, dropped.transpose(2, 3) @ gradient, *[None] * 3


def use_cpu_dropout(model: nn.Module, own_attention: bool) -> str | None:
    """Replace a model's dropout modules, and with ``own_attention`` the attention of backbones that use torch's.

    Returns:
        Why nothing was replaced, or None.
    """
    reason = native.unavailable(torch.device("cpu"), torch.float32)
    if reason is not None:
        return reason
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, CpuDropout(child.p, child.inplace).train(child.training))
    for backbone in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        if own_attention and backbone.config._attn_implementation == "sdpa" and backbone._can_set_attn_implementation():
            backbone.set_attn_implementation(ATTENTION)
    return None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
