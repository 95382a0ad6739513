// Argument checks of the direct convolution and choice of the back end. Compiled without nvcc.

#include "dcls/conv.hpp"

#include <limits>
#include <string>

#include "api/check_args.hpp"
#include "core/checks.hpp"
#include "core/conv_geometry.hpp"
#include "cpu/cpu_backend.hpp"
#include "cuda/cuda_backend.hpp"

namespace dcls {

namespace {

constexpr std::int64_t kFar = std::int64_t{1} << 31;

/// What all bounds of one axis are for: every position, stride * y - padding + dilation * r, stays
/// far below 2^63.
void check_axis(const char* kernel, int axis, std::int64_t input_size, std::int64_t kernel_size,
                std::int64_t stride, std::int64_t padding, std::int64_t dilation) {
  using validate::check_range;
  check_range({"input_size", axis}, input_size, 0, kFar);
  check_range({kernel, axis}, kernel_size, 1, kMaxAxisSize);
  check_range({"stride", axis}, stride, 1, kMaxAxisSize);
  check_range({"padding", axis}, padding, -kFar, kFar);
  check_range({"dilation", axis}, dilation, 1, kMaxAxisSize);
}

}  // namespace

std::int64_t output_size(std::int64_t input_size, std::int64_t kernel_size, std::int64_t stride,
                         std::int64_t padding, std::int64_t dilation) {
  return api::usual_output_size("kernel_size", -1, input_size, kernel_size, stride, padding,
                                dilation);
}

std::int64_t api::usual_output_size(const char* kernel, int axis, std::int64_t input_size,
                                    std::int64_t kernel_size, std::int64_t stride,
                                    std::int64_t padding, std::int64_t dilation) {
  using validate::Name;
  check_axis(kernel, axis, input_size, kernel_size, stride, padding, dilation);
  const std::int64_t padded = input_size + 2 * padding;
  const std::int64_t reach = dilation * (kernel_size - 1) + 1;
  validate::require(reach <= padded, Name(kernel, axis), " reaches over ", reach, " points, and ",
                    Name("input_size", axis), " with padding has ", padded);
  return (padded - reach) / stride + 1;
}

void api::check_output_size(int axis, std::int64_t output_size, std::int64_t usual) {
  validate::require(output_size == usual, validate::Name("output_size", axis), " must be ", usual,
                    ", unless any_output_size is set, got ", output_size);
}

void api::check_conv(const ConvArgs& args, const Execution& where) {
  using validate::check_range;
  using validate::require;
  validate::check_execution(where);
  validate::check_enum("dtype", static_cast<int>(args.dtype), kDTypeCount);
  validate::check_enum("layout", static_cast<int>(args.layout), 2);
  check_range("ndim", args.ndim, 1, kMaxDims);
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  check_range("batch", args.batch, 0, kMax);
  check_range("groups", args.groups, 1, kMax);
  check_range("in_channels", args.in_channels, 0, kMax);
  check_range("out_channels", args.out_channels, 0, kMax);
  require(args.in_channels % args.groups == 0, "in_channels must be a multiple of groups");
  require(args.out_channels % args.groups == 0, "out_channels must be a multiple of groups");
  validate::Product input("the input"), output("the output"), kernel("the kernel");
  input.times(8).times(args.batch).times(args.in_channels);
  output.times(8).times(args.batch).times(args.out_channels);
  kernel.times(8).times(args.out_channels).times(args.in_channels / args.groups);
  for (int d = 0; d < args.ndim; ++d) {
    check_range({"output_size", d}, args.output_size[d], 0, kFar);
    if (args.any_output_size) {
      check_axis("kernel_size", d, args.input_size[d], args.kernel_size[d], args.stride[d],
                 args.padding[d], args.dilation[d]);
    } else {
      check_output_size(d, args.output_size[d],
                        usual_output_size("kernel_size", d, args.input_size[d], args.kernel_size[d],
                                          args.stride[d], args.padding[d], args.dilation[d]));
    }
    input.times(args.input_size[d]);
    output.times(args.output_size[d]);
    kernel.times(args.kernel_size[d]);
  }
}

namespace {

void check_workspace(const ConvArgs& args, ConvPass pass, const void* workspace,
                     const Execution& where) {
  if (where.device == DeviceType::kCpu || workspace != nullptr) return;
  validate::require(direct_conv_workspace(args, pass, where) == 0,
                    "workspace must not be null: see direct_conv_workspace");
}

}  // namespace

std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass, const Execution& where) {
  api::check_conv(args, where);
  validate::check_enum("pass", static_cast<int>(pass), 3);
  if (where.device == DeviceType::kCpu) return 0;
  return cuda::direct_conv_workspace(args, pass, where);
}

bool direct_conv_takes_batch_as_lanes(const ConvArgs& args, std::int64_t vector_bytes) {
  api::check_conv(args, Execution{});
  validate::require(vector_bytes == 0 || vector_bytes == 32 || vector_bytes == 64,
                    "vector_bytes must be 0, 32 or 64");
  return cpu::batch_as_columns(args, vector_bytes == 0 ? cpu::vector_bytes() : vector_bytes);
}

void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, void* workspace, const Execution& where) {
  api::check_conv(args, where);
  if (geometry::no_output(args)) return;
  validate::require(input != nullptr || geometry::no_input(args), "input must not be null");
  validate::require(kernel != nullptr || args.in_channels == 0, "kernel must not be null");
  validate::require(output != nullptr, "output must not be null");
  check_workspace(args, ConvPass::kForward, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::direct_conv(args, input, kernel, bias, output, workspace, where);
  } else {
    cpu::direct_conv(args, input, kernel, bias, output, where.num_threads);
  }
}

struct PreparedConv::State {
  ConvArgs args;
  std::shared_ptr<const cpu::PlannedConv> planned;
};

PreparedConv::PreparedConv(const ConvArgs& args, const void* kernel, const Execution& where) {
  validate::require(where.device == DeviceType::kCpu, "where must be the CPU");
  api::check_conv(args, where);
  validate::require(kernel != nullptr || args.in_channels == 0 || args.out_channels == 0,
                    "kernel must not be null");
  state_ = std::make_unique<State>();
  state_->args = args;
  if (geometry::no_output(args)) return;
  state_->planned = cpu::prepare_conv(args, kernel, where.num_threads);
}

PreparedConv::PreparedConv(PreparedConv&&) noexcept = default;
PreparedConv& PreparedConv::operator=(PreparedConv&&) noexcept = default;
PreparedConv::~PreparedConv() = default;

void PreparedConv::forward(const void* input, const void* bias, void* output,
                           const Execution& where) const {
  validate::require(where.device == DeviceType::kCpu, "where must be the CPU");
  validate::check_execution(where);
  validate::require(state_ != nullptr, "a PreparedConv that was moved from has no kernel");
  const ConvArgs& args = state_->args;
  if (geometry::no_output(args)) return;
  validate::require(input != nullptr || geometry::no_input(args), "input must not be null");
  validate::require(output != nullptr, "output must not be null");
  cpu::prepared_conv(args, state_->planned.get(), input, bias, output, where.num_threads);
}

void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, void* workspace, const Execution& where) {
  api::check_conv(args, where);
  if (geometry::no_input(args)) return;
  validate::require(grad_output != nullptr || geometry::no_output(args),
                    "grad_output must not be null");
  validate::require(kernel != nullptr || args.out_channels == 0, "kernel must not be null");
  validate::require(grad_input != nullptr, "grad_input must not be null");
  check_workspace(args, ConvPass::kBackwardInput, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::direct_conv_backward_input(args, grad_output, kernel, grad_input, workspace, where);
  } else {
    cpu::direct_conv_backward_input(args, grad_output, kernel, grad_input, where.num_threads);
  }
}

void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, void* workspace,
                                 const Execution& where) {
  api::check_conv(args, where);
  if (args.out_channels == 0 || args.in_channels == 0) return;
  validate::require(grad_output != nullptr || geometry::no_output(args),
                    "grad_output must not be null");
  validate::require(input != nullptr || geometry::no_input(args), "input must not be null");
  validate::require(grad_kernel != nullptr, "grad_kernel must not be null");
  check_workspace(args, ConvPass::kBackwardKernel, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::direct_conv_backward_kernel(args, grad_output, input, support, grad_kernel, workspace,
                                      where);
  } else {
    cpu::direct_conv_backward_kernel(args, grad_output, input, support, grad_kernel,
                                     where.num_threads);
  }
}

}  // namespace dcls
