"""The loss objects of the GradCache package (github.com/luyug/GradCache, PyPI ``gradcache``).

    from fastdense.integrations.grad_cache import SimpleContrastiveLoss      # was: from grad_cache.loss import ...

    GradCache(models=[query_encoder, passage_encoder], chunk_sizes=8, loss_fn=SimpleContrastiveLoss())

Same constructors, same values and gradients. ``reduction="none"`` and a wrong number of passages are answered by
GradCache's own code. ``DistributedContrastiveLoss`` returns what GradCache's returns, without a factor W: averaged by
DistributedDataParallel its gradients are 1 / W of a single process's, as they are there.
"""

try:
    import grad_cache.loss as peer  # the name in the repository
except ModuleNotFoundError:
    import gradcache.loss as peer  # and on the registry

from fastdense.integrations.loss_calls import DistributedCall, SimpleCall

__all__ = ["ContrastiveLossWithQueryClosure", "DistributedContrastiveLoss", "SimpleContrastiveLoss"]


class SimpleContrastiveLoss(SimpleCall, peer.SimpleContrastiveLoss):
    """``SimpleContrastiveLoss(n_hard_negatives=0)(x, y, target=None, reduction="mean")``, fused."""


class DistributedContrastiveLoss(DistributedCall, peer.DistributedContrastiveLoss):
    """``DistributedContrastiveLoss(n_hard_negatives=0)(x, y, **kwargs)``, fused, this rank's rows only."""


class ContrastiveLossWithQueryClosure(peer.ContrastiveLossWithQueryClosure, SimpleContrastiveLoss):
    """``ContrastiveLossWithQueryClosure``, which hands what it has evaluated to the fused loss."""
