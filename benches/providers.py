"""Who computes the loss and both gradients: fastdense's implementations, and what else is importable here.

Each provider takes (query [N, D], passage [M, D], target [N]) and returns the gradients of both; the loss is the mean
softmax cross-entropy of the scores times SCALE.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdense
from benches.peer_providers import PEERS, make_peer
from fastdense.loss.backends import IMPLEMENTATIONS

SCALE = 20.0
Gradients = tuple[Tensor, Tensor]
Provider = Callable[[Tensor, Tensor, Tensor], Gradients]


def by_autograd(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Provider:
    def run(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
        query, passage = query.detach().requires_grad_(), passage.detach().requires_grad_()
        loss(query, passage, target).backward()
        assert query.grad is not None
        assert passage.grad is not None
        return query.grad, passage.grad

    return run


def naive_loss(query: Tensor, passage: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(SCALE * query @ passage.T, target)


def one_pass(implementation: str) -> Provider:
    def run(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
        result = fastdense.contrastive_loss_and_grad(query, passage, target, scale=SCALE, implementation=implementation)
        return result.query_grad, result.passage_grad

    return run


def native_by_mma() -> Provider:
    """Where the native implementation would take wgmma: its other kernel, for comparison."""
    native = one_pass("native")

    def run(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
        os.environ["FASTDENSE_CUDA_PRODUCT"] = "mma"  # read at every launch
        try:
            return native(query, passage, target)
        finally:
            del os.environ["FASTDENSE_CUDA_PRODUCT"]

    return run


def python_chunks(query: Tensor, passage: Tensor, target: Tensor, rows: int = 256) -> Gradients:
    """One pass over chunks of rows in plain torch: what a careful user writes."""
    query_grad, passage_grad = torch.empty_like(query), torch.zeros_like(passage)
    for start in range(0, query.shape[0], rows):
        part = slice(start, start + rows)
        gradient = torch.softmax(SCALE * query[part] @ passage.T, 1)
        gradient[torch.arange(gradient.shape[0], device=query.device), target[part]] -= 1
        gradient *= SCALE / query.shape[0]
        torch.mm(gradient, passage, out=query_grad[part])
        passage_grad.addmm_(gradient.T, query[part])
    return query_grad, passage_grad


def torch_fused() -> Provider | None:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        return None
    return by_autograd(lambda query, passage, target: function(SCALE * query, passage, target))


def sentence_transformers_cached() -> Provider | None:
    """Its cached loss on given representations. Target and negatives of a query must lie together, target first."""
    if find_spec("sentence_transformers") is None:
        return None
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    unused = SentenceTransformer(modules=[torch.nn.Identity()], device="cpu")
    loss = CachedMultipleNegativesRankingLoss(unused, scale=SCALE, similarity_fct=lambda a, b: a @ b.T)

    def run(query: Tensor, passage: Tensor, target: Tensor) -> Gradients:
        groups = passage.detach().view(query.shape[0], -1, query.shape[1]).unbind(1)
        columns = [query.detach().clone().requires_grad_(), *(group.clone().requires_grad_() for group in groups)]
        loss.calculate_loss([[column] for column in columns], with_backward=True)
        gradients = [column.grad for column in columns if column.grad is not None]
        return gradients[0], torch.stack(gradients[1:], 1).view_as(passage)

    return run


def compiled() -> Provider:
    """Anew for every shape; after a few torch would go on uncompiled, and with ``fullgraph`` it says so instead."""
    torch._dynamo.config.recompile_limit = 100
    return by_autograd(torch.compile(naive_loss, dynamic=False, fullgraph=True))


def of_peer(name: str, device: str) -> Provider | None:
    loss = make_peer(name, device, SCALE)
    return None if loss is None else by_autograd(loss)


def providers(device: str, dtype: torch.dtype, only: Sequence[str] = ()) -> dict[str, Provider]:
    """Those that can run here, by name; of these, if ``only`` says so, those whose name contains one of its parts.

    One that is not installed is named on the error stream.
    """
    makers: dict[str, Callable[[], Provider | None]] = {
        f"fastdense {name}": partial(one_pass, name)
        for name, module in IMPLEMENTATIONS.items()
        if module.unavailable(torch.device(device), dtype) is None
    }
    makers["fastdense through autograd"] = partial(by_autograd, partial(fastdense.contrastive_loss, scale=SCALE))
    on_tensor_cores = "fastdense native" in makers and device == "cuda" and dtype == torch.bfloat16
    if on_tensor_cores and torch.cuda.get_device_capability() == (9, 0):
        makers["fastdense native by mma"] = native_by_mma
    makers["naive autograd"] = partial(by_autograd, naive_loss)
    makers["torch.compile"] = compiled
    makers["F.linear_cross_entropy"] = torch_fused
    makers["Python chunks of 256"] = lambda: python_chunks
    makers["sentence-transformers"] = sentence_transformers_cached
    if device.startswith("cuda"):
        makers |= {name: partial(of_peer, name, device) for name in PEERS}
        # Our CUDA kernels last: an error of one spoils the device for whatever the process does after it.
        makers |= {name: makers.pop(name) for name in ("fastdense native by mma", "fastdense native") if name in makers}
    chosen = {name: make() for name, make in makers.items() if not only or any(part in name for part in only)}
    for name in (name for name, provider in chosen.items() if provider is None):
        print(f"{name}: not installed here, left out", file=sys.stderr)
    return {name: provider for name, provider in chosen.items() if provider is not None}


def matrix_products(device: str, dtype: torch.dtype) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The ways to make torch compute ``a @ b.T`` here; the bare products of the loss are taken by each.

    oneDNN refuses bfloat16 and float16 on a CPU without instructions for them. There the widened product is often the
    fastest way that torch has.
    """
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": lambda a, b: a @ b.T}
    if device == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        linear = torch.ops.mkldnn._linear_pointwise
        found["oneDNN"] = lambda a, b: linear(a, b, None, "none", [], "")
    if device == "cpu" and dtype != torch.float32:
        found["widened to float32"] = lambda a, b: (a.float() @ b.float().T).to(dtype)
    probe = torch.ones(32, 32, dtype=dtype, device=device)
    return {name: multiply for name, multiply in found.items() if _runs(multiply, probe)}


def _runs(multiply: Callable[[Tensor, Tensor], Tensor], probe: Tensor) -> bool:
    try:
        multiply(probe, probe)
    except RuntimeError:
        return False
    return True
