#!/usr/bin/env bash
# Everything that only a GPU can prove, offline and in under nine minutes: build, the tests marked gpu, the sanitizer
# where it is installed, the benches. Not yet run on a GPU.
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

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') || {
  echo "gpu_check: torch sees no GPU" >&2
  exit 2
}

# Into a folder of its own: the interpreter's packages may be read-only.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
step build 120 "$python" -m pip install -q --no-index --no-deps --no-build-isolation --target "$site" .
export PYTHONPATH=$site
# tests and benches from elsewhere, or the source folder would hide the package just built
cp -r tests benches pyproject.toml "$site"
cd "$site" || exit 2

step backends 30 "$python" -c '
import torch, triton, fastdense
print(torch.__version__, triton.__version__, torch.cuda.get_device_name())
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    print(fastdense.backends("cuda", dtype))'
step gpu-tests 150 "$python" -m pytest -q -p no:cacheprovider -m gpu tests/loss

if command -v compute-sanitizer >/dev/null; then
  step sanitizer 60 compute-sanitizer --error-exitcode 1 "$python" -c '
import torch, fastdense
for dtype in (torch.float32, torch.bfloat16):
    query, passage = (torch.randn(rows, 72, device="cuda").to(dtype) for rows in (150, 450))
    ids = torch.arange(450, device="cuda") % 300
    for name in ("triton", "native"):
        if fastdense.backends("cuda", dtype)[name] == "available":
            fastdense.contrastive_loss_and_grad(
                query, passage, passage_id=ids, label_smoothing=0.1, implementation=name, chunk_bytes=200_000)
torch.cuda.synchronize()'
fi

for dtype in bfloat16 float16 float32; do
  shapes=(--shape 4096x8192x768)
  [ "$dtype" = float32 ] || shapes+=(--shape 32768x65536x768)
  step "bench-$dtype" 55 "$python" benches/contrastive_loss.py --device cuda --dtype "$dtype" "${shapes[@]}" \
    --only fastdense --only naive --only compile --only linear_cross --repeats 5 --output "$results/$device-$dtype.json"
done

if [ "${#failed[@]}" -gt 0 ]; then
  echo "gpu_check: failed: ${failed[*]} (logs in $results)"
  exit 1
fi
echo "gpu_check: all passed; results in $results"
