// What the CUDA back end knows about the build and the devices. Compiled by the C++ compiler.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <sstream>

#include "cuda/cuda_backend.hpp"
#include "cuda/runtime/device_guard.hpp"

namespace dcls::cuda {
namespace {

std::string version_string(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string error_string(cudaError_t code) {
  cudaGetLastError();
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

/// A function of the driver, which the library does not link: the runtime has loaded it. Null if
/// there is none.
template <typename Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
#if CUDART_VERSION >= 12050
  cudaDriverEntryPointQueryResult result{};
  cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#elif CUDART_VERSION >= 12000
  cudaDriverEntryPointQueryResult result{};
  cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#else
  cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif
  cudaGetLastError();
  return reinterpret_cast<Function*>(found);
}

/// What DeviceGuard needs of the driver.
struct Contexts {
  CUresult (*state)(CUdevice, unsigned*, int*) =
      driver_function<CUresult(CUdevice, unsigned*, int*)>("cuDevicePrimaryCtxGetState");
  CUresult (*retain)(CUcontext*, CUdevice) =
      driver_function<CUresult(CUcontext*, CUdevice)>("cuDevicePrimaryCtxRetain");
  CUresult (*release)(CUdevice) = driver_function<CUresult(CUdevice)>("cuDevicePrimaryCtxRelease");
  CUresult (*push)(CUcontext) = driver_function<CUresult(CUcontext)>("cuCtxPushCurrent");
  CUresult (*pop)(CUcontext*) = driver_function<CUresult(CUcontext*)>("cuCtxPopCurrent");

  static const Contexts& instance() {
    static const Contexts contexts;
    return contexts;
  }
  /// Whether a device is known to have no context.
  bool none(int device) const {
    unsigned flags = 0;
    int active = 1;
    const bool all = state && retain && release && push && pop;
    return all && state(device, &flags, &active) == CUDA_SUCCESS && active == 0;
  }
  bool enter(int device) const {
    CUcontext context = nullptr;
    if (retain(&context, device) != CUDA_SUCCESS) return false;
    if (push(context) == CUDA_SUCCESS) return true;
    release(device);
    return false;
  }
  void leave(int device) const {
    CUcontext context = nullptr;
    pop(&context);
    release(device);
  }
};

void check_device(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  throw CudaError(std::string("dcls: ") + what + " failed: " + error_string(code));
}

}  // namespace

DeviceGuard::DeviceGuard(int device) : device_(device) {
  check_device(cudaGetDevice(&former_), "cudaGetDevice");
  if (device == former_) return;
  const Contexts& contexts = Contexts::instance();
  if (contexts.none(former_) && contexts.enter(device)) {
    change_ = Change::kPushed;
  } else {
    check_device(cudaSetDevice(device), "cudaSetDevice");
    change_ = Change::kSet;
  }
}

DeviceGuard::~DeviceGuard() {
  if (change_ == Change::kPushed) Contexts::instance().leave(device_);
  // A failure of this is not the next launch's to report.
  if (change_ == Change::kSet && cudaSetDevice(former_) != cudaSuccess) cudaGetLastError();
}

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
