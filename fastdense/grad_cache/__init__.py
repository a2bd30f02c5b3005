"""Gradient caching: a batch of any size in the memory of one chunk, with the gradients of the whole batch.

1. :func:`cached_forward` runs the model chunk by chunk without keeping graphs and returns all representations.
2. The loss gives the gradients of the representations.
3. The backward pass runs each chunk again, dropout replayed bit for bit, and sends its rows' gradients through it.
   Chunks whose graphs fit a :class:`GraphBudget` have kept them from step 1 and are not run again.

:func:`attach_gradients` hangs step 3 on the loss's own ``backward()``, so that loss scaling, accumulation and the
trainer's loop stay as they are.
"""

from fastdense.grad_cache.attach import attach_gradients
from fastdense.grad_cache.cached import CachedForward, cached_forward
from fastdense.grad_cache.chunks import plan_chunks, token_spans
from fastdense.grad_cache.keeping import GraphBudget

__all__ = ["CachedForward", "GraphBudget", "attach_gradients", "cached_forward", "plan_chunks", "token_spans"]
