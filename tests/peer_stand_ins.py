"""Stand-ins for libraries that no registry serves or that need too much: Tevatron's encoders, open_clip's loss.

Written from what those libraries document and were observed to do, with nothing of fastdense in them. open_clip's is
used only where open_clip itself cannot be imported (it needs the torchvision that fits torch).
"""

import sys
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def gather_with_own_part(tensor: Tensor) -> Tensor:
    """All ranks' rows, of which this rank's carry a gradient."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    parts[dist.get_rank()] = tensor
    return torch.cat(parts)


class EncoderOutput(NamedTuple):
    q_reps: Tensor | None = None
    p_reps: Tensor | None = None
    loss: Tensor | None = None
    scores: Tensor | None = None


class EncoderModel(nn.Module):
    """Tevatron's: ``negatives_x_device`` as in v1, ``temperature`` and ``is_ddp`` as in v2."""

    def __init__(
        self, temperature: float | None = None, negatives_x_device: bool = False, is_ddp: bool = False
    ) -> None:
        super().__init__()
        if temperature is not None:
            self.temperature = temperature
        self.negatives_x_device, self.is_ddp = negatives_x_device, is_ddp
        self.cross_entropy = nn.CrossEntropyLoss(reduction="mean")

    def forward(self, query: dict[str, Tensor] | None = None, passage: dict[str, Tensor] | None = None) -> Any:
        q_reps = self.encode_query(query) if query else None
        p_reps = self.encode_passage(passage) if passage else None
        if q_reps is None or p_reps is None:
            return EncoderOutput(q_reps, p_reps)
        if not self.training:
            return EncoderOutput(q_reps, p_reps, None, self.compute_similarity(q_reps, p_reps))
        shared = self.negatives_x_device or self.is_ddp
        if shared:
            q_reps, p_reps = gather_with_own_part(q_reps), gather_with_own_part(p_reps)
        scores = self.compute_similarity(q_reps, p_reps)
        target = torch.arange(len(q_reps)) * (len(p_reps) // len(q_reps))
        loss = self.compute_loss(scores / getattr(self, "temperature", 1.0), target)
        return EncoderOutput(q_reps, p_reps, loss * dist.get_world_size() if shared else loss, scores)

    def compute_similarity(self, q_reps: Tensor, p_reps: Tensor) -> Tensor:
        return torch.matmul(q_reps, p_reps.transpose(0, 1))

    def compute_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        return self.cross_entropy(scores, target)


class DenseModel(EncoderModel):
    """The mean of learned word vectors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        torch.manual_seed(0)
        self.words = nn.Embedding(30, 12)

    def encode_query(self, qry: dict[str, Tensor]) -> Tensor:
        return self.words(qry["input_ids"]).mean(1)

    encode_passage = encode_query


class ColbertModel(DenseModel):
    """A similarity of its own."""

    def compute_similarity(self, q_reps: Tensor, p_reps: Tensor) -> Tensor:
        return -torch.cdist(q_reps, p_reps)


class TevatronSimpleContrastiveLoss:
    """Tevatron's copy of GradCache's: any number of passages a query."""

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        if target is None:
            target = torch.arange(len(x)) * (len(y) // len(x))
        return F.cross_entropy(x @ y.T, target, reduction=reduction)


class TevatronDistributedContrastiveLoss(TevatronSimpleContrastiveLoss):
    """Tevatron's copy of GradCache's, times the number of ranks unless told otherwise."""

    def __init__(self, n_target: int = 0, scale_loss: bool = True) -> None:
        self.word_size, self.scale_loss = dist.get_world_size(), scale_loss

    def __call__(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        loss = super().__call__(self.gather_tensor(x), self.gather_tensor(y), **kwargs)
        return loss * self.word_size if self.scale_loss else loss

    def gather_tensor(self, t: Tensor) -> Tensor:
        return gather_with_own_part(t)


def import_open_clip() -> ModuleType:
    """open_clip's ``loss`` module, or the stand-in under its name."""
    try:
        from open_clip import loss
    except (ImportError, RuntimeError):  # RuntimeError: a torchvision built for another torch
        for name in [name for name in sys.modules if name.partition(".")[0] in ("open_clip", "torchvision")]:
            del sys.modules[name]
        package, loss = ModuleType("open_clip"), ModuleType("open_clip.loss")
        package.loss, loss.ClipLoss, loss.gather_features = loss, ClipLoss, gather_features
        sys.modules |= {"open_clip": package, "open_clip.loss": loss}
    return loss


class ClipLoss(nn.Module):
    """open_clip's, without Horovod."""

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__()
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.rank, self.world_size = rank, world_size

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        images = texts = None
        if self.world_size > 1:
            images, texts = gather_features(
                image_features, text_features, self.local_loss, self.gather_with_grad, self.rank, self.world_size
            )
            if not self.local_loss:
                image_features, text_features = images, texts
        images, texts = (image_features, text_features) if images is None else (images, texts)
        bias = 0.0 if logit_bias is None else logit_bias
        label = torch.arange(len(image_features))
        if self.local_loss:
            label = label + self.rank * len(label)
        to_text = F.cross_entropy(logit_scale * image_features @ texts.T + bias, label)
        to_image = F.cross_entropy(logit_scale * text_features @ images.T + bias, label)
        loss = (to_text + to_image) / 2
        return {"contrastive_loss": loss} if output_dict else loss


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Tensor, Tensor]:
    from torch.distributed.nn import all_gather

    def gather(tensor: Tensor) -> Tensor:
        if gather_with_grad:
            return torch.cat(all_gather(tensor))
        return gather_with_own_part(tensor.detach() if local_loss else tensor)

    return gather(image_features), gather(text_features)
