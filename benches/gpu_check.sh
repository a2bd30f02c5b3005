#!/usr/bin/env bash
# Everything that only a GPU can prove, offline and in under nine minutes (the steps' limits add up to 520 seconds):
# build, the tests marked gpu, the sanitizer where it is installed, the benches. Not yet run on a GPU. On compute
# capability 9.0 both CUDA kernels, by mma and by wgmma, are tested, sanitized and timed beside Triton's.
#
#   benches/gpu_check.sh            results in benches/results, or in $OUT
#
# The interpreter ($PYTHON, default python3) must hold torch with CUDA, triton, pytest, hypothesis, scikit-build-core,
# pybind11, cmake and ninja; nvcc, where it is on the PATH, builds the CUDA kernel too.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${OUT:-benches/results}
mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 2
failed=()

step() { # NAME SECONDS COMMAND...: goes on after a failure, which the last line reports
  local name=$1 seconds=$2
  shift 2
  echo "=== $name"
  timeout "$seconds" "$@" 2>&1 | tee "$results/$name.log" | tail -n 40
  [ "${PIPESTATUS[0]}" = 0 ] || failed+=("$name")
}

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))' 2>/dev/null) || {
  echo "gpu_check: torch sees no GPU" >&2
  exit 2
}

# Into a folder of its own: the interpreter's packages may be read-only.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
step build 110 "$python" -m pip install -q --no-index --no-deps --no-build-isolation --target "$site" .
export PYTHONPATH=$site
# tests and benches from elsewhere, or the source folder would hide the package just built
cp -r tests benches pyproject.toml "$site"
cd "$site" || exit 2

step backends 20 "$python" -c '
import torch, triton, fastdense
print(torch.__version__, triton.__version__, torch.cuda.get_device_name())
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    print(fastdense.backends("cuda", dtype))'
step gpu-tests 120 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/loss

if command -v compute-sanitizer >/dev/null; then
  step sanitizer 40 compute-sanitizer --error-exitcode 1 "$python" -c '
import os, torch, fastdense
products = ["mma", "wgmma"] if torch.cuda.get_device_capability() == (9, 0) else ["mma"]
for dtype in (torch.float32, torch.bfloat16):
    query, passage = (torch.randn(rows, 330, device="cuda").to(dtype) for rows in (150, 450))
    ids = torch.arange(450, device="cuda") % 300
    for name, product in (("triton", "mma"), *(("native", product) for product in products)):
        os.environ["FASTDENSE_CUDA_PRODUCT"] = product
        if fastdense.backends("cuda", dtype)[name] == "available":
            fastdense.contrastive_loss_and_grad(
                query, passage, passage_id=ids, label_smoothing=0.1, implementation=name, chunk_bytes=200_000)
torch.cuda.synchronize()'
fi

for dtype in bfloat16 float16 float32; do
  shapes=(--shape 4096x8192x768)
  [ "$dtype" = float32 ] || shapes+=(--shape 32768x65536x768)
  step "bench-$dtype" 45 "$python" benches/contrastive_loss.py --device cuda --dtype "$dtype" "${shapes[@]}" \
    --only fastdense --only naive --only compile --only linear_cross --repeats 5 --output "$results/$device-$dtype.json"
done

# Scores that no memory holds: 2 TiB of them in bfloat16. 6 N M D is 5.1e15 operations there, ten seconds at 500 TFLOP/s,
# so the smaller size comes first, and the larger one only where that leaves time for it.
step large 50 "$python" -c '
import json, sys, time
import torch, fastdense
from torch.nn.functional import normalize

found = []
for size in (2**18, 2**20):
    if found and (found[-1]["seconds"] or 0) * 16 > 30:
        break
    torch.cuda.empty_cache()
    query, passage = (torch.cat([normalize(torch.randn(2**16, 768, device="cuda"), dim=1).bfloat16()
                                 for _ in range(size // 2**16)]) for _ in range(2))
    call = lambda: fastdense.contrastive_loss_and_grad(
        query, passage, scale=20.0, implementation="triton", chunk_bytes=2**33)
    fastdense.contrastive_loss_and_grad(query[:2**13], passage[:2**13], scale=20.0, implementation="triton")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    result = call()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    # Each of the scores of a row is N(0, 20^2 / 768): what the loss of unrelated vectors must be.
    expected = torch.tensor(float(size)).log().item() + 400 / 768 / 2
    found.append({"N": size, "M": size, "D": 768, "dtype": "bfloat16", "seconds": seconds, "tflops": 6 * size**2 * 768 /
                  seconds / 1e12, "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20,
                  "loss": result.loss.item(), "expected_loss": expected})
    print(found[-1], flush=True)
    json.dump(found, open(sys.argv[1], "w"), indent=1)
    assert abs(result.loss.item() - expected) < 0.01, "wrong loss"
    assert all(gradient.isfinite().all() for gradient in (result.query_grad, result.passage_grad)), "not finite"
    del query, passage, result
' "$results/$device-large.json"

if "$python" -c 'import transformers' 2>/dev/null; then
  step train-step 45 "$python" benches/train_step.py --model minilm --batch 256 --device cuda --dtype bfloat16 \
    --repeats 3 --only "fastdense cached" --data "$site/train-step-data" --output "$results/$device-train-step.json"
fi

if [ "${#failed[@]}" -gt 0 ]; then
  echo "gpu_check: failed: ${failed[*]} (logs in $results)"
  exit 1
fi
echo "gpu_check: all passed; results in $results"
