#!/usr/bin/env bash
# Checks and measures DCLS on this machine's NVIDIA GPU, without network: builds for that GPU, runs
# the tests, compute-sanitizer and the benchmarks.
#
#   scripts/gpu_check.sh [--upstream FOLDER] [--output FOLDER] [--minutes 20] [--work FOLDER]
#                        [--steps NAME ...] [--skip NAME ...] [--commit TEXT]
#
# --upstream  a folder filled by pip install --target FOLDER --no-deps dcls==0.1.1, to compare with
# --output    where the JSON files go, and with them the logs, packed into gpu-check.tar.gz
#             (default: benchmarks/results)
# --minutes   time for everything; what has ended by then is kept
# --work      where it builds (default: build/gpu-check); nothing is installed anywhere else
# --steps     the steps to run, all others being left out: names or patterns
# --skip      steps to leave out
# --commit    what the files here are, where git cannot tell; or else $DCLS_COMMIT
#
# Where no command may take long, in parts, of which the later ones use the build of the first:
#
#   scripts/gpu_check.sh --minutes 9 --steps build 'pytest-*' --skip pytest-rest
#   scripts/gpu_check.sh --minutes 9 --steps 'bench-*'
#   scripts/gpu_check.sh --minutes 9 --steps '*check-*'
#
# Needs nvcc of CUDA 12.0 or newer and python3 (or $PYTHON) with a CUDA build of torch and with pip,
# scikit-build-core, pybind11, cmake, ninja and pytest; some of the tests, which else fail, hypothesis
# and numpy. Works in a git checkout and in a plain copy of the sources.
#
# Exit status: 0 if all that was selected passed, 1 if something failed, was not reached or could not
# be run, 2 if something is missing, in which case nothing was built.
set -euo pipefail

missing() {
  printf 'gpu_check: %s. Nothing was built.\n' "$1" >&2
  exit 2
}

for argument in "$@"; do
  case $argument in
    -h | --help)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
  esac
done

here=$(cd "$(dirname "$0")" && pwd)
command -v nvidia-smi >/dev/null ||
  missing "there is no NVIDIA GPU here: nvidia-smi is not on the PATH"
gpus=$(nvidia-smi --list-gpus 2>/dev/null) || gpus=
[[ $gpus == GPU* ]] || missing "there is no NVIDIA GPU here: nvidia-smi lists none"
if ! command -v nvcc >/dev/null; then
  PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
  command -v nvcc >/dev/null || missing "nvcc is neither on the PATH nor in ${CUDA_HOME:-/usr/local/cuda}/bin"
fi
python=${PYTHON:-python3}
command -v "$python" >/dev/null || missing "there is no $python"

# From here on in Python, which also sees to signals: results so far are kept when it is cut short.
exec "$python" "$here/gpu_report.py" "$@"
