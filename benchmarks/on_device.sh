#!/usr/bin/env bash
# Everything that needs a GPU, in one call: on_device.sh [--dry-run] OUTDIR
#
# For a bare CUDA machine without a network: python with torch, triton, pybind11 and setuptools, and nvcc; the tests
# need pytest too, some of them hypothesis or transformers; three parts need compute-sanitizer or ncu. What is missing
# is skipped and says so. Builds the extension, runs the GPU tests (eight at a time with pytest-xdist), the benchmark,
# compute-sanitizer and a profile of the slowest kernel: each part has a time limit, all together ON_DEVICE_SECONDS
# (530), and none that fails stops the others.
# OUTDIR gets summary.txt, a log a part and ops.csv. PYTHON names the interpreter, PRUNEENGINE_COMMIT the commit where
# there is no git. A dry run builds nothing, and times a small op on the CPU in place of the GPU's parts.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=${ON_DEVICE_DRY_RUN:-0}
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
[ $# -eq 1 ] || { echo "usage: on_device.sh [--dry-run] OUTDIR" >&2; exit 2; }
mkdir -p "$1"
OUT=$(cd "$1" && pwd)
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
toolkit=${CUDA_HOME:-/usr/local/cuda}/bin
[ ! -d "$toolkit" ] || export PATH="$toolkit:$PATH"
deadline=$((SECONDS + ${ON_DEVICE_SECONDS:-530}))
failed=0
: > "$OUT/summary.txt"

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

has_module() { "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

# Why a part cannot run here, or nothing. A need is gpu, build, cmd:NAME or py:MODULE.
missing() {
  local need
  for need in "$@"; do
    case $need in
      build) [ "$dry" = 0 ] || { echo "a dry run"; return; } ;;
      gpu) [ "$gpu" = 1 ] || { echo "no CUDA device"; return; } ;;
      cmd:*) command -v "${need#cmd:}" > /dev/null || { echo "${need#cmd:} is not on PATH"; return; } ;;
      py:*) has_module "${need#py:}" || { echo "python has no ${need#py:}"; return; } ;;
    esac
  done
}

# part NAME SECONDS "NEEDS" COMMAND...
part() {
  local name=$1 limit=$2 needs=$3 why code word begin=$SECONDS left=$((deadline - SECONDS))
  shift 3
  # shellcheck disable=SC2086
  why=$(missing $needs)
  [ -z "$why" ] && [ "$left" -lt 5 ] && why="no time left"
  if [ -n "$why" ]; then
    say "$(printf '%-10s skipped: %s' "$name" "$why")"
    return
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  echo "+ $*" > "$OUT/$name.log"
  # An interrupt lets the benchmark and pytest end with what they have.
  timeout -s INT -k 8 "$limit" "$@" >> "$OUT/$name.log" 2>&1
  code=$?
  case $code in
    0) word= ;;
    124 | 130 | 137) word="out of time" failed=1 ;;
    *) word="FAILED, see $name.log" failed=1 ;;
  esac
  say "$(printf '%-10s exit %-3s %4d s  %s' "$name" "$code" $((SECONDS - begin)) "$word")"
}

gpu=0
[ "$dry" = 1 ] || ! "$PYTHON" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || gpu=1
versions="from pruneengine.bench.environment import versions; print(versions('torch', 'triton', 'setuptools', 'pytest'))"
say "$("$PYTHON" -c "$versions" 2>&1 | tail -1)"
command -v nvidia-smi > /dev/null && say "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -1)"
command -v nvcc > /dev/null && say "nvcc $(nvcc --version | sed -n "s/.*release //p")"

part build 110 "build cmd:nvcc py:pybind11 py:setuptools" env PRUNEENGINE_BUILD=cuda bash -c '
  "$PYTHON" -m pip install --no-deps --no-build-isolation --disable-pip-version-check -e . ||
    "$PYTHON" setup.py build_ext --inplace ||
    PRUNEENGINE_BUILD=auto "$PYTHON" setup.py build_ext --inplace
  # A build in place leaves the Triton files where they are; an installation maps them into the package.
  "$PYTHON" -c "import pruneengine.kernels" 2> /dev/null || ln -s ../kernels/triton pruneengine/kernels
  "$PYTHON" -c "
import sys
from pruneengine.ops import available_backends
print(available_backends())
sys.exit(available_backends()[\"cuda\"] != \"available\")"'

# A file that cannot be imported would count as a failure.
absent=none
has_module hypothesis || absent+="|hypothesis"
has_module transformers || absent+="|tests\.helpers\.tiny"
mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu|backend_params' tests | sort)
mapfile -t untested < <(grep -lE "^from ($absent)( |\.)" "${files[@]}")
mapfile -t files < <(grep -LE "^from ($absent)( |\.)" "${files[@]}")
mapfile -t of_kernels < <(printf '%s\n' "${files[@]}" | grep ^tests/kernels/)
mapfile -t of_ops < <(printf '%s\n' "${files[@]}" | grep ^tests/ops/)
mapfile -t of_cuda < <(printf '%s\n' "${files[@]}" | grep -v ^tests/kernels/)
[ ${#untested[@]} = 0 ] || say "untested, as hypothesis or transformers is missing: ${untested[*]}"

tests=(-m pytest -q -m gpu)
many=()
! has_module xdist || many=(-n 8)
part cuda 70 "gpu py:pytest" "$PYTHON" "${tests[@]}" "${many[@]}" -k "not triton" "${of_cuda[@]}"
part triton 90 "gpu py:pytest py:triton" \
  "$PYTHON" "${tests[@]}" "${many[@]}" -k "triton or kernels" "${of_kernels[@]}" "${of_ops[@]}"
part bench 170 gpu "$PYTHON" -m benchmarks.speed.run --device cuda --results "$OUT"

if has_module pytest && has_module hypothesis; then
  checked=("${tests[@]}" -k cuda "${of_ops[@]}")
  raced=("${tests[@]}" -k "cuda and (kth or select)" "${of_ops[@]}")
else
  # The gates of the benchmark run the same kernels on small odd shapes.
  checked=(-m benchmarks.speed.run --device cuda --providers cuda --shapes 40x1004 --rounds 1 --results "$(mktemp -d)")
  raced=("${checked[@]}" --ops "kth_value,select_mask,kth_value_global,select_mask_global")
fi
# Uncached, every tensor is an allocation of its own, so that an access past its end shows.
sanitizer=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --target-processes all --error-exitcode 9)
part memcheck 50 "gpu cmd:compute-sanitizer" "${sanitizer[@]}" --tool memcheck "$PYTHON" "${checked[@]}"
part racecheck 25 "gpu cmd:compute-sanitizer" "${sanitizer[@]}" --tool racecheck "$PYTHON" "${raced[@]}"
part ncu 20 "gpu cmd:ncu" ncu --profile-from-start off --set basic "$PYTHON" -m benchmarks.speed.profile_slowest --results "$OUT"
if [ "$dry" = 1 ]; then
  part smoke 120 "" "$PYTHON" -m benchmarks.speed.run --ops gate_scores --shapes 8x16 --rounds 1 --results "$OUT"
fi
exit "$failed"
