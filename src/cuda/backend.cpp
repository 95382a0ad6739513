// The CUDA back end's host side. Compiled by the C++ compiler: no kernel is in here.

#include "cuda/backend.hpp"

#include <cuda_runtime_api.h>

#include <sstream>

#include "common/dispatch.hpp"
#include "common/tap_table.hpp"
#include "cuda/construct_launch.hpp"
#include "cuda/conv_launch.hpp"
#include "cuda/conv_make_plan.hpp"
#include "cuda/im2col_launch.hpp"

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

void construct(const ConstructArgs& args, void* kernel, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) { launch_construct<ndim()>(args, kernel, where); });
}

void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_construct_backward<ndim()>(args, grad_kernel, grads, where);
  });
}

void construct_support(const ConstructArgs& args, std::uint8_t* support, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_construct_support<ndim()>(args, support, where); });
}

std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass, const Execution&) {
  return conv_workspace(make_conv_plan(args, pass), pass, args.dtype).total();
}

void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, void* workspace, const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_correlate<true> : launch_conv_correlate<false>;
  launch(args, ConvPass::kForward, input, kernel, bias, output, workspace, where);
}

void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, void* workspace, const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_correlate<true> : launch_conv_correlate<false>;
  launch(args, ConvPass::kBackwardInput, grad_output, kernel, nullptr, grad_input, workspace,
         where);
}

void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, void* workspace,
                                 const Execution& where) {
  const auto launch = args.ndim == 1 ? launch_conv_kernel<true> : launch_conv_kernel<false>;
  launch(args, grad_output, input, support, grad_kernel, workspace, where);
}

std::int64_t im2col_workspace(const Im2colArgs& args) {
  const TapLayout layout = tap_table::longest_layout(args);
  return args.dtype == DType::kFloat64 ? tap_table::bytes<double>(layout, args.ndim)
                                       : tap_table::bytes<float>(layout, args.ndim);
}

void im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim,
                [&](auto ndim) { launch_im2col<ndim()>(args, columns, workspace, where); });
}

void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_backward<ndim()>(args, grad_columns, grads, workspace, where);
  });
}

void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, void* workspace, const Execution& where) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    launch_im2col_finish<ndim()>(args, sums, parts, grad_position, grad_sigma, workspace, where);
  });
}

}  // namespace dcls::cuda
