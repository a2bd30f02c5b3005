"""open_clip's contrastive loss, without the two matrices of logits.

    from fastdense.integrations.open_clip import ClipLoss      # was: from open_clip import ClipLoss

Same constructor, loss and gradients (of the features and of ``logit_scale``), with ``local_loss`` and
``gather_with_grad`` over ranks too; tested with open_clip 3.3.0. The parent class computes everything else: a
``logit_bias``, Horovod.
"""

import torch
from open_clip import loss as peer
from torch import Tensor

from fastdense.integrations.autocast import as_operands
from fastdense.loss import contrastive_loss

__all__ = ["ClipLoss"]


class ClipLoss(peer.ClipLoss):
    """``ClipLoss(local_loss, gather_with_grad, cache_labels, rank, world_size)``, fused.

    With ``local_loss`` a rank computes its own rows of both directions; without it, as in the parent, every rank
    computes the whole global batch. ``cache_labels`` changes nothing here: there is nothing to cache.
    """

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Mean of both directions' losses, shape [], float32.

        Args:
            image_features, text_features: [N, D], row i of one belongs to row i of the other.
            logit_scale: factor on the dot products, already exponentiated; a tensor gets its gradient.
            logit_bias: not fused.
            output_dict: return ``{"contrastive_loss": loss}``.
        """
        if logit_bias is not None or getattr(self, "use_horovod", False):
            return super().forward(image_features, text_features, logit_scale, logit_bias, output_dict)
        if isinstance(logit_scale, Tensor):
            logit_scale = logit_scale.to(image_features.device)
        image, text = as_operands(image_features, text_features)
        loss = self._fused_loss(image, text, logit_scale)
        return {"contrastive_loss": loss} if output_dict else loss

    def _fused_loss(self, image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
        if self.world_size == 1:
            return contrastive_loss(image, text, scale=scale, symmetric=True)
        all_images, all_texts = peer.gather_features(
            image,
            text,
            local_loss=self.local_loss,
            gather_with_grad=self.gather_with_grad,
            rank=self.rank,
            world_size=self.world_size,
        )
        if not self.local_loss:
            return contrastive_loss(all_images, all_texts, scale=scale, symmetric=True)
        own = torch.arange(len(image), device=image.device) + self.rank * len(image)
        to_text = contrastive_loss(image, all_texts, own, scale=scale)
        to_image = contrastive_loss(text, all_images, own, scale=scale)
        return (to_text + to_image) / 2
