"""Small problems through every GPU kernel of the loss, for compute-sanitizer.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 python -m benches gpu_sanitize

Without that variable torch cuts its tensors out of large allocations, and what one writes into the next is no error to
the sanitizer. Ragged sizes, ids and several chunks take each kernel over its edges.
"""

import os

import torch

import fastdense

ROWS, COLUMNS, WIDTH = 150, 450, 330


def run(implementation: str, dtype: torch.dtype) -> None:
    query, passage = (torch.randn(rows, WIDTH, device="cuda").to(dtype) for rows in (ROWS, COLUMNS))
    ids = torch.arange(COLUMNS, device="cuda") % 300
    fastdense.contrastive_loss_and_grad(
        query, passage, passage_id=ids, label_smoothing=0.1, implementation=implementation, chunk_bytes=200_000
    )
    torch.cuda.synchronize()


def main() -> None:
    # Triton's first: an error of a CUDA kernel spoils the device for what follows.
    kernels = [("triton", ""), ("native", "mma")]
    if torch.cuda.get_device_capability() == (9, 0):
        kernels.append(("native", "wgmma"))
    for implementation, product in kernels:
        if product:
            os.environ["FASTDENSE_CUDA_PRODUCT"] = product  # read at every launch
        for dtype in (torch.float32, torch.bfloat16):
            state = fastdense.backends("cuda", dtype)[implementation]
            print(implementation, product, dtype, state, flush=True)
            if state == "available":
                run(implementation, dtype)


if __name__ == "__main__":
    main()
