// What the CUDA back end knows about the build and the devices. Compiled by the C++ compiler.

#include <cuda_runtime_api.h>

#include <sstream>

#include "cuda/cuda_backend.hpp"

namespace dcls::cuda {
namespace {

std::string version_string(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string error_string(cudaError_t code) {
  cudaGetLastError();
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

}  // namespace

bool compiled() { return true; }
std::string toolkit_version() { return version_string(CUDART_VERSION); }

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  std::istringstream list(DCLS_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ',');) names.push_back(name);
  return names;
}

CudaStatus status() {
  CudaStatus status;
  int driver = 0;
  if (const cudaError_t code = cudaDriverGetVersion(&driver); code != cudaSuccess) {
    status.reason = error_string(code);
    return status;
  }
  if (driver == 0) {
    status.reason = "no NVIDIA driver found";
    return status;
  }
  status.driver = version_string(driver);
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    status.reason = error_string(code);
    return status;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    if (const cudaError_t code = cudaGetDeviceProperties(&properties, i); code != cudaSuccess) {
      status.reason = error_string(code);
      return status;
    }
    status.devices.push_back(std::string(properties.name) + " (compute capability " +
                             std::to_string(properties.major) + "." +
                             std::to_string(properties.minor) + ")");
  }
  status.available = count > 0;
  if (count == 0) status.reason = "no CUDA device is visible";
  return status;
}

}  // namespace dcls::cuda
