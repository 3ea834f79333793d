#!/usr/bin/env bash
# All that needs a GPU in one call: the tests marked gpu, the benchmark beside peers in bf16, and in fp32 as far as vectors
# are compared, and a profile. Usage: benchmarks/on_gpu.sh [folder for logs and results]; PYTHON names the interpreter. Goes on
# after a failure, and ends with it.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/results/side_by_side}")
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.csv"
# Several workers: most of the time of a test is its kernels being compiled, each by one core.
timeout "${TESTS_LIMIT:-240}" "$python" -m pytest -m gpu -n "${WORKERS:-8}" --dist worksteal -p no:cacheprovider 2>&1 | tee "$out/gpu-tests.log" || failed=1
for options in "--precision fp32 --models 0.6b --only queries --rounds 1" "--models 0.6b --resume" "--models 1.7b --resume" "--models 2b-vl --resume" "--models encoder --resume"; do
  # shellcheck disable=SC2086
  "$python" -m benchmarks.side_by_side --device cuda $options --results "$out" 2>&1 | tee -a "$out/gpu-benchmark.log" || failed=1
done
"$python" -m benchmarks.measure_profile --output "$out/profile.json" 2>&1 | tee -a "$out/gpu-benchmark.log" || failed=1
exit $failed
