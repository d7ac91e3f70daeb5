#!/usr/bin/env bash
# On a GPU machine, in the repository's root, after bench/gpu_prepare.sh elsewhere: OUT=results bash bench/gpu_session.sh
# Tests, self-test and benchmark in at most BUDGET seconds (560); logs, JUnit XML and JSON come back in $OUT.
#   PARTS="tests selftest marked bench" chooses some; DRY=1 tries the script where there is no GPU.
cd "$(dirname "$0")/.." || exit 1
OUT=${OUT:-bench/results/gpu/session}
mkdir -p "$OUT"
exec > >(tee "$OUT/log.txt") 2>&1
export PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/tri} KEOPS_VERBOSE=0 CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
PY=${PY:-python3} BUDGET=${BUDGET:-560} PARTS=${PARTS:-tests selftest marked bench}
CLI="$PY -c 'from gwf_fast.cli import main; main()'"
TEST="$PY -m pytest -p no:benchmark -p no:cacheprovider -q --tb=short"
failed=0
mark() { echo "== $SECONDS s: $1"; }
part() { [[ " $PARTS " == *" $1 "* ]]; }
left() { local rest=$((BUDGET - SECONDS)); echo $((rest < $1 ? (rest > 5 ? rest : 5) : $1)); }
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm --format=csv,noheader; nvcc --version | tail -1
if [ -d .gpu ]; then
  $PY -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .gpu/*.whl
  ln -sfn ../kernels gwf_fast/kernels # no editable install: it would compile everything again
  # a .pth, not PYTHONPATH: some tests start subprocesses with nothing but PATH
  printf '%s\n/tmp/site\n' "$PWD" > "$($PY -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gwf_dev.pth"
  cp .gpu/*.so gwf_fast/
  $PY -c 'from gwf_fast import _cpu, _cuda; print("prebuilt modules load")' || {
    mark "build"
    rm -f gwf_fast/*.so
    GWF_FAST_CUDA=1 timeout 200 $PY setup.py -q build_ext --inplace
  }
fi
$PY -c 'import torch, triton, gwf_fast as g; print(torch.__version__, triton.__version__, g.backends())' || exit 1
if part tests; then
  mark "tests on the GPU in parallel; they fill the Triton cache that the self-test then reads"
  timeout "$(left 200)" $TEST ${JOBS:+-n $JOBS} --junitxml="$OUT/tests.xml" -m "not slow and not gpu" \
    --ignore tests/gpu/test_keops.py --ignore tests/gpu/test_compile.py --ignore tests/gpu/test_sass.py \
    --ignore tests/gpu/test_cuda_host.py tests/gpu || failed=1
fi
if part selftest; then
  mark "self-test: every backend but KeOps, which compiles for seconds a case"
  eval timeout "$(left 120)" $CLI selftest --backend triton --backend cuda --backend torch ${DRY:+--device cpu --match sum-} || failed=1
fi
if part marked; then
  mark "pytest -m gpu"
  timeout "$(left 60)" $TEST -m gpu tests/gpu -k "not keops" || failed=1
fi
if part bench; then
  mark "bench"
  $PY -m bench --device cuda --seconds-total "$(left ${BENCH_SECONDS:-150})" --out "$OUT/bench.json" \
    ${DRY:+--dry-run --no-peers --seconds 0.01} || failed=1
fi
mark "end"
exit $failed
