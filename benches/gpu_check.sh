#!/usr/bin/env bash
# Everything that only a GPU can prove, offline and in under nine minutes (the steps' limits add up to 535 seconds):
# build, the tests marked gpu, the sanitizer where it is installed, the benches. Not yet run on a GPU. On compute
# capability 9.0 both CUDA kernels, by mma and by wgmma, are tested, sanitized and timed beside Triton's.
#
#   benches/gpu_check.sh            every step; results in benches/results, or in $OUT
#   benches/gpu_check.sh STEP...    these alone, after the build: to repeat one, or to do the work in two parts
#
# The steps are named below. One that fails or takes too long does not keep the others from running; the last line says
# which did, and what was left out for want of what. Results are the benches' JSON files and DEVICE-gpu-check.log, which
# gets all that the steps print, as they print it: a run that is cut off leaves it as well. A later run is added to it.
#
# The interpreter ($PYTHON, default python3) must hold torch with CUDA, triton, pytest, hypothesis, scikit-build-core,
# pybind11, cmake and ninja; $PYTHONPATH may bring more. With pytest-xdist and pytest-timeout a test that hangs takes
# fewer others along. nvcc, where it is on the PATH, builds the CUDA kernels.
set -uo pipefail
steps=(build backends triton-tests common-tests mma-tests wgmma-tests other-tests sanitizer
  bench-bfloat16 bench-float16 bench-float32 large train-step)
for name in "$@"; do
  [[ " ${steps[*]} " = *" $name "* ]] || {
    echo "gpu_check: there is no step $name; the steps are ${steps[*]}" >&2
    exit 2
  }
done
asked=" ${steps[*]} "
[ $# = 0 ] || asked=" build $* "
is_asked() { [[ $asked = *" $1 "* ]]; }

# What the caller names must be found from the folder below, too.
python=$(realpath -s "$(command -v "${PYTHON:-python3}")") || exit 2
results=$(realpath -m "${OUT:-$(dirname "$0")/results}")
given=$(tr : '\n' <<<"${PYTHONPATH:-}" | sed '/^$/d' | xargs -r -d '\n' realpath -sm | paste -sd :)
mkdir -p "$results" && cd "$(dirname "$0")/.." || exit 2
device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))' 2>/dev/null) || {
  echo "gpu_check: torch sees no GPU" >&2
  exit 2
}
log=$results/$device-gpu-check.log
passed=() failed=() left_out=()
say() { echo "$*" | tee -a "$log"; }

# NAME SECONDS COMMAND...: goes on after a failure. Interrupted five seconds before the end, Python says what it was
# doing, and pytest what it has found; then all that the command has started is killed. No pipe: what the command might
# leave behind would hold it open.
step() {
  local name=$1 seconds=$2 before status
  shift 2
  is_asked "$name" || return 0
  say "=== $name"
  before=$(wc -l <"$log")
  SECONDS=0
  timeout -s KILL "$seconds" timeout --foreground -s INT "$((seconds - 5))" "$@" >>"$log" 2>&1
  status=$?
  tail -n "+$((before + 1))" "$log" | tail -n 25
  if [ "$status" = 0 ]; then passed+=("$name"); else failed+=("$name"); fi
  say "--- $name: status $status after $SECONDS of at most $seconds s"
}

leave_out() { # STEP WHAT WHY
  is_asked "$1" || return 0
  left_out+=("$2 ($3)")
  say "=== $2: left out, $3"
}

missing() { # PACKAGE...: prints those that are not installed
  "$python" -c 'import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))' "$@"
}

finish() {
  local omitted=""
  [ "${#left_out[@]}" = 0 ] || omitted="; left out:$(printf ' %s' "${left_out[@]}")"
  if [ "${#failed[@]}" -gt 0 ]; then
    say "gpu_check: failed: ${failed[*]}$omitted; see $log"
    exit 1
  fi
  say "gpu_check: all passed: ${passed[*]}$omitted; results in $results"
  exit
}

# Into a folder of its own: the interpreter's packages may be read-only.
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
say "gpu_check: $(date -u +%FT%TZ), $device, steps:${asked% }"
export PYTHONPATH=$given PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1
export XLA_PYTHON_CLIENT_PREALLOCATE=false # or JAX would take most of the memory from the tests beside it
step build 75 "$python" -m pip install -q --no-index --no-deps --no-build-isolation --target "$site" .
[ "${#failed[@]}" = 0 ] || finish
export PYTHONPATH=$site${given:+:$given}
# tests and benches from elsewhere, or the source folder would hide the package just built
cp -r tests benches pyproject.toml "$site"
cd "$site" || exit 2

# The training step's rows need no GPU: they are written while other steps use it, and a thousand are soon tokenized.
lacking=$(missing transformers datasets accelerate safetensors)
if is_asked train-step && [ -z "$lacking" ]; then
  { timeout 60 "$python" -m fastdense.builtin_data --output_dir rows && sed -i '1001,$d' rows/train.jsonl; } \
    >>"$log" 2>&1 &
fi

step backends 15 "$python" -c 'import torch, triton, fastdense
print(torch.__version__, triton.__version__, torch.cuda.get_device_name())
print(*(fastdense.backends("cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)), sep="\n")'

tests() { # NAME SECONDS ARGUMENTS...
  local name=$1 seconds=$2 apart=()
  shift 2
  [ -n "$(missing xdist pytest_timeout)" ] ||
    apart=(-n 4 --dist worksteal --timeout "$((seconds / 2))" --timeout-method=thread)
  step "$name" "$seconds" "$python" -m pytest -v -rfE --tb=short -p no:cacheprovider -m gpu "${apart[@]}" "$@"
}
tests triton-tests 55 tests/loss/test_triton_gpu.py
tests common-tests 20 tests/loss/test_gpu.py
tests mma-tests 25 tests/loss/test_cuda_gpu.py -k "not wgmma"
tests wgmma-tests 25 tests/loss/test_cuda_gpu.py -k wgmma

others=()
other() { # FILE PACKAGE...: without these it cannot be collected, or not run
  local file=$1 absent
  shift
  absent=$(missing "$@")
  if [ -z "$absent" ]; then others+=("$file"); else leave_out other-tests "$file" "no $absent"; fi
}
other tests/training/test_step.py transformers datasets
other tests/training/test_input_pipeline.py transformers datasets accelerate
other tests/retrieval/test_nearest.py faiss
other tests/jax/test_gpu.py jax flax optax transformers
[ "${#others[@]}" = 0 ] || tests other-tests 25 "${others[@]}"

# First without the sanitizer, under which compiling would take minutes.
if [ -n "$(command -v compute-sanitizer)" ]; then
  # shellcheck disable=SC2016 # the inner bash expands them
  step sanitizer 80 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 bash -c '
    timeout --foreground -k 5 30 "$0" benches/gpu_sanitize.py; alone=$?
    compute-sanitizer --error-exitcode 1 --report-api-errors no "$0" benches/gpu_sanitize.py && exit "$alone"' "$python"
else
  leave_out sanitizer sanitizer "no compute-sanitizer"
fi

bench() { # DTYPE SECONDS ARGUMENTS...
  local dtype=$1 seconds=$2
  shift 2
  step "bench-$dtype" "$seconds" "$python" benches/contrastive_loss.py --device cuda --dtype "$dtype" --repeats 5 \
    --shape 4096x8192x768 --only fastdense --only naive --only linear_cross "$@" --output "$results/$device-$dtype.json"
}
bench bfloat16 80 --shape 32768x65536x768 --only compile
bench float16 30 --shape 32768x65536x768
bench float32 25

step large 40 "$python" benches/gpu_large.py --output "$results/$device-large.json"

if [ -z "$lacking" ]; then
  wait
  step train-step 40 "$python" benches/train_step.py --model minilm --batch 256 --device cuda --dtype bfloat16 \
    --repeats 3 --no-memory --only "fastdense cached" --data rows --output "$results/$device-train-step.json"
else
  leave_out train-step train-step "no $lacking"
fi
finish
