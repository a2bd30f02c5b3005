"""What a CPU needs to train at its speed: freed memory that stays at hand, and dropout that keeps up."""

import logging

from torch import nn

from fastdense.training.dropout import use_cpu_dropout
from fastdense.training.freed_memory import reuse_freed_memory

logger = logging.getLogger(__name__)


def settle_on_cpu(model: nn.Module, *, own_attention: bool, own_dropout: bool) -> None:
    """Prepare a model, and this process, for training on a CPU.

    Args:
        model: dropout modules in it are replaced.
        own_attention: nobody has asked for an implementation of attention by name.
        own_dropout: False for a model that torch.compile will see.
    """
    reuse_freed_memory()
    if not own_dropout:
        return
    reason = use_cpu_dropout(model, own_attention)
    if reason is not None:
        logger.warning("dropout on this CPU is torch's, which is slower: %s", reason)
