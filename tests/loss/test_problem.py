"""Every bad argument is refused before any work, in one sentence that names it."""

import os
import subprocess
import sys

import forked
import numpy as np
import pytest
import torch

from fastdense import ContrastiveLoss, backends, contrastive_loss, contrastive_loss_and_grad

Q, P = torch.ones(4, 8), torch.ones(12, 8)

BAD = [
    ({"query": [[1.0]]}, TypeError, "query must be a torch.Tensor, got list"),
    ({"passage": None}, TypeError, "passage must be a torch.Tensor, got NoneType"),
    ({"query": torch.ones(8)}, ValueError, r"query must have shape \[N, D\], got \[8\]"),
    ({"passage": torch.ones(2, 3, 8)}, ValueError, r"passage must have shape \[M, D\], got \[2, 3, 8\]"),
    ({"query": torch.ones(4, 8, dtype=torch.int64)}, TypeError, "query must be float32.*got int64"),
    ({"query": Q.bfloat16()}, TypeError, "one dtype, got bfloat16 and float32"),
    ({"query": torch.ones(4, 9)}, ValueError, r"same width D, got \[4, 9\] and \[12, 8\]"),
    ({"passage": torch.ones(0, 8)}, ValueError, "passage has no rows"),
    ({"query": Q.to("meta")}, ValueError, "one device, got meta and cpu"),
    ({"passage": torch.ones(13, 8)}, ValueError, "multiple of the number of queries.*got 13 passages for 4 queries"),
    ({"target": torch.zeros(5, dtype=torch.long)}, ValueError, r"target must have.*shape \[4\], got \[5\]"),
    ({"target": torch.zeros(4)}, TypeError, "target must have an integer dtype, got float32"),
    ({"target": torch.zeros(4, dtype=torch.bool)}, TypeError, "target must have an integer dtype, got bool"),
    ({"target": [0, 1, 2, 3]}, TypeError, "target must be a torch.Tensor, got list"),
    ({"target": torch.tensor([0, 1, 2, 12])}, ValueError, r"target must lie in \[0, 12\), got values from 0 to 12"),
    ({"target": torch.tensor([0, 1, 2, -1])}, ValueError, r"target must lie in \[0, 12\), got values from -1 to 2"),
    ({"query": Q.repeat(30, 1), "target": torch.arange(120) - 1}, ValueError, "got values from -1 to 118"),
    ({"target": torch.zeros(4, dtype=torch.long, device="meta")}, ValueError, "target must be on the device of query"),
    ({"scale": 0.0}, ValueError, "scale .* greater than 0, got 0.0"),
    ({"scale": -1}, ValueError, "scale .* greater than 0, got -1"),
    ({"scale": float("nan")}, ValueError, "scale .* finite .* got nan"),
    ({"scale": 1e39}, ValueError, "scale .* finite .* got 1e.39"),
    ({"scale": 1e-50}, ValueError, "scale .* greater than 0, got 1e-50"),
    ({"scale": torch.tensor(1e39, dtype=torch.float64)}, ValueError, "scale .* finite .* got 1e.39"),
    ({"scale": "20"}, TypeError, "scale must be a number or a tensor with one element, got str"),
    ({"scale": True}, TypeError, "scale must be a number or a tensor with one element, got bool"),
    ({"scale": torch.ones(2)}, ValueError, r"scale must be .* one element, got float32 \[2\]"),
    ({"scale": torch.ones((), dtype=torch.long)}, ValueError, r"scale must be .* floating-point.*got int64 \[\]"),
    ({"scale": torch.tensor(torch.inf)}, ValueError, "scale .* finite .* got inf"),
    ({"scale": torch.ones((), device="meta")}, ValueError, "scale must be on the device of query, cpu, got meta"),
    ({"passage_id": torch.zeros(4, dtype=torch.long)}, ValueError, r"passage_id must have.*shape \[12\], got \[4\]"),
    ({"passage_id": torch.zeros(12)}, TypeError, "passage_id must have an integer dtype, got float32"),
    ({"weight": torch.ones(12)}, ValueError, r"weight must have one value for a query, shape \[4\], got \[12\]"),
    ({"weight": torch.ones(4, dtype=torch.long)}, TypeError, "weight must have a floating-point dtype, got int64"),
    ({"weight": torch.tensor([1.0, 1, 1, -1])}, ValueError, "weight must be finite and not negative"),
    ({"weight": torch.tensor([1.0, 1, 1, torch.nan])}, ValueError, "weight must be finite and not negative"),
    ({"weight": torch.full((4,), 1e39, dtype=torch.float64)}, ValueError, "weight must be finite and not negative"),
    ({"weight": torch.ones(4, requires_grad=True)}, ValueError, r"weight requires a gradient.*weight.detach\(\)"),
    ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must lie in \[0, 1\), got 1.0"),
    ({"label_smoothing": -0.1}, ValueError, r"label_smoothing must lie in \[0, 1\), got -0.1"),
    ({"reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', got 'none'.*log_normalizer - target_score"),
    ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be a positive number of bytes, got 0"),
    ({"chunk_bytes": 1e6}, ValueError, "chunk_bytes must be a positive number of bytes, got 1000000.0"),
    (
        {"implementation": "tritn"},
        ValueError,
        "implementation must be one of 'auto', 'native', 'triton', 'reference', got 'tritn'",
    ),
]


@pytest.mark.parametrize("function", [contrastive_loss, contrastive_loss_and_grad])
@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(**{"query": Q, "passage": P, **arguments})


@pytest.mark.parametrize("number", [np.float32(2), np.float64(2), np.int64(2), 2])
def test_any_number_is_a_scale(number):
    assert contrastive_loss(Q, P, scale=number) == contrastive_loss(Q, P, scale=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"reduction": "none"}, "reduction"), ({"label_smoothing": 2.0}, "label_smoothing")]
)
def test_module_refuses_bad_options_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveLoss(20.0, **arguments)


def test_an_implementation_asked_for_by_name_runs_or_says_why_not():
    with pytest.raises(ValueError, match="implementation 'native' cannot run here: it has no float64 kernel"):
        contrastive_loss(Q.double(), P.double(), implementation="native")


def test_auto_takes_what_can_run():
    assert contrastive_loss(Q.double(), P.double()).dtype == torch.float64
    assert backends("cpu")["auto"].startswith("native for float32 on cpu")
    assert backends("cpu:0") == backends("cpu")
    report = backends("cpu", torch.float64)
    assert report["auto"].startswith(
        "reference for float64 on cpu, because native cannot run: it has no float64 kernel"
    )
    assert report["reference"] == "available"
    if not torch.cuda.is_available():
        assert "reference for float32 on cuda, because the others have not yet run" in backends("cuda")["auto"]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf")])
def test_module_refuses_a_scale_that_is_not_positive(scale):
    with pytest.raises(ValueError, match=r"scale .* greater than 0"):
        ContrastiveLoss(scale, learnable=True)


ANY_LOSS = "import torch, fastdense; fastdense.contrastive_loss(torch.ones(2, 4), torch.ones(2, 4))"


def test_a_bad_number_of_chunk_bytes_in_the_environment():
    environment = os.environ | {"FASTDENSE_LOSS_CHUNK_BYTES": "64M"}
    done = subprocess.run([sys.executable, "-c", ANY_LOSS], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "FASTDENSE_LOSS_CHUNK_BYTES must be a positive number of bytes, got '64M'" in done.stderr


def test_a_bad_instruction_set_in_the_environment(tmp_path):
    environment = {"FASTDENSE_CPU_INSTRUCTION_SET": "mmx"}
    status, printed = forked.run(["-c", ANY_LOSS], log=tmp_path / "log", environment=environment)
    assert status == 1
    assert "FASTDENSE_CPU_INSTRUCTION_SET must name an instruction set" in printed
