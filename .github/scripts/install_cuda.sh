#!/usr/bin/env bash
# Installs what DCLS needs of the CUDA toolkit, and ccache, in a manylinux_2_28 container.
# DCLS_CUDA_TOOLKIT chooses the version: 12.8 is the oldest that knows every listed architecture,
# and so serves the widest range of drivers. With DCLS_NVCC=pypi the build itself asks for the
# compiler, as it does on a machine without a toolkit, and what is lacking is the tool of
# check_wheel.py.
set -euo pipefail

version=${DCLS_CUDA_TOOLKIT:-12.8}
if [[ ! $version =~ ^1[23]\.[0-9]+$ ]]; then
  echo "DCLS_CUDA_TOOLKIT must be a version like 12.8 or 13.0, got '$version'" >&2
  exit 2
fi
case $(uname -m) in
  x86_64) platform=x86_64 ;;
  aarch64) platform=sbsa ;;
  *)
    echo "NVIDIA has no toolkit for $(uname -m)" >&2
    exit 2
    ;;
esac

dnf install -y dnf-plugins-core epel-release
dnf install -y ccache
if [[ ${DCLS_NVCC:-} == pypi ]]; then
  python3.12 -m pip install --target /opt/cuobjdump nvidia-cuda-cuobjdump
  ln -s /opt/cuobjdump/nvidia/cu13/bin/cuobjdump /usr/local/bin/
  cuobjdump --version
  exit
fi
dnf config-manager --add-repo \
  "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$platform/cuda-rhel8.repo"
suffix=${version/./-}
dnf install -y --setopt=install_weak_deps=False \
  "cuda-nvcc-$suffix" "cuda-cudart-devel-$suffix" "cuda-cuobjdump-$suffix"
ln -sfn "/usr/local/cuda-$version" /usr/local/cuda
nvcc --version # of /usr/local/cuda/bin, which pyproject.toml puts on the PATH
