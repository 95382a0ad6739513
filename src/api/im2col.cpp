// Argument checks and choice of the back end. Compiled without nvcc.

#include "dcls/im2col.hpp"

#include <limits>

#include "api/check_args.hpp"
#include "core/checks.hpp"
#include "core/conv_geometry.hpp"
#include "cpu/cpu_backend.hpp"
#include "cuda/cuda_backend.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
/// Bound of everything that is a place along an axis: products of two of them do not overflow.
constexpr std::int64_t kMostPlace = std::int64_t{1} << 30;

}  // namespace

Im2colArgs api::checked_im2col_elements(Im2colArgs args, const Execution& where) {
  using validate::require;
  validate::check_execution(where);
  validate::check_enum("dtype", static_cast<int>(args.dtype), kDTypeCount);
  validate::check_enum("version", static_cast<int>(args.version), kVersionCount);
  validate::check_range("ndim", args.ndim, 1, kMaxDims);
  validate::check_range("channels", args.channels, 0, kMost);
  validate::check_range("elements", args.elements, 0, kMost);
  std::int64_t taps = 0;
  for (int d = 0; d < args.ndim; ++d) {
    validate::check_range({"size", d}, args.size[d], 1, kMaxAxisSize);
    taps += args.size[d];
  }
  validate::Product("the taps of all elements")
      .times(args.channels)
      .times(args.elements)
      .times(taps + 8)
      .times(3 * 8);
  const bool has_elements = args.channels > 0 && args.elements > 0;
  require(!has_elements || args.position != nullptr, "position must not be null");
  if (interp::has_width(args.version)) {
    require(!has_elements || args.sigma != nullptr, "sigma must not be null for this version");
  } else {
    require(args.sigma == nullptr, "sigma must be null for a version without widths");
  }
  args.sigma_min = api::checked_sigma_min(args.version, args.sigma_min);
  return args;
}

namespace {

/// Puts the dense strides of planes of `plane` values where kDenseStride stands for them.
void make_dense(std::int64_t plane, std::int64_t channels, std::int64_t& batch_stride,
                std::int64_t& channel_stride) {
  if (channel_stride == kDenseStride) channel_stride = plane;
  if (batch_stride == kDenseStride) batch_stride = channels * plane;
}

void check_stride(const char* name, std::int64_t stride, std::int64_t count, std::int64_t least) {
  // Of one item the stride is never used.
  if (count > 1) validate::check_range(name, stride, least, kMost / 16 / count);
}

std::int64_t plane_of(const Im2colArgs& args) {
  return geometry::product(args.input_size, args.ndim);
}

}  // namespace

Im2colArgs api::checked_im2col(const Im2colArgs& given, const Execution& where) {
  Im2colArgs args = api::checked_im2col_elements(given, where);
  validate::check_range("batch", args.batch, 0, kMost);
  validate::Product columns("the number of values of the columns");
  validate::Product plane("the number of values of the input");
  columns.times(args.batch).times(args.channels).times(args.elements).times(8);
  for (int d = 0; d < args.ndim; ++d) {
    validate::check_range({"stride", d}, args.stride[d], 1, kMostPlace);
    validate::check_range({"padding", d}, args.padding[d], -kMostPlace * 2, kMostPlace * 2);
    validate::check_range({"input_size", d}, args.input_size[d], 0, kMostPlace);
    validate::check_range({"output_size", d}, args.output_size[d], 1, kMostPlace);
    if (!args.any_output_size) {
      api::check_output_size(d, args.output_size[d],
                             api::usual_output_size("size", d, args.input_size[d], args.size[d],
                                                    args.stride[d], args.padding[d], 1));
    }
    columns.times(args.output_size[d]);
    plane.times(args.input_size[d]);
  }
  plane.times(args.batch > 0 ? args.batch : 1)
      .times(args.channels > 0 ? args.channels : 1)
      .times(8);
  make_dense(plane_of(args), args.channels, args.batch_stride, args.channel_stride);
  check_stride("batch_stride", args.batch_stride, args.batch, 0);
  check_stride("channel_stride", args.channel_stride, args.channels, 0);
  return args;
}

namespace {

void check_parts(const char* name, const Im2colArgs& args, std::int64_t parts) {
  validate::check_range(name, parts, 1, kMost);
  validate::Product("the number of values of the sums")
      .times(args.channels)
      .times(args.elements)
      .times(1 + 2 * kMaxDims)
      .times(8)
      .times(parts);
}

bool is_empty(const Im2colArgs& args) {
  return args.batch == 0 || args.channels == 0 || args.elements == 0;
}

bool has_input(const Im2colArgs& args) {
  for (int d = 0; d < args.ndim; ++d) {
    if (args.input_size[d] == 0) return false;
  }
  return true;
}

void check_workspace(const Im2colArgs& args, const void* workspace, const Execution& where) {
  validate::require(where.device == DeviceType::kCpu || workspace != nullptr || is_empty(args),
                    "workspace must not be null on CUDA");
}

}  // namespace

std::int64_t im2col_workspace(const Im2colArgs& given, const Execution& where) {
  const Im2colArgs args = api::checked_im2col_elements(given, where);
  return where.device == DeviceType::kCuda ? cuda::im2col_workspace(args) : 0;
}

void im2col(const Im2colArgs& given, void* columns, void* workspace, const Execution& where) {
  Im2colArgs args = api::checked_im2col(given, where);
  if (is_empty(args)) return;
  validate::require(args.input != nullptr || !has_input(args), "input must not be null");
  validate::require(columns != nullptr, "columns must not be null");
  check_workspace(args, workspace, where);
  // Nothing is read of an input without points. Its planes must not be offsets of a null pointer.
  if (!has_input(args)) args.batch_stride = args.channel_stride = 0;
  if (where.device == DeviceType::kCuda) {
    cuda::im2col(args, columns, workspace, where);
  } else {
    cpu::im2col(args, columns, where.num_threads);
  }
}

void im2col_backward(const Im2colArgs& given, const void* grad_columns, const Im2colGrads& wanted,
                     void* workspace, const Execution& where) {
  using validate::require;
  const Im2colArgs args = api::checked_im2col(given, where);
  Im2colGrads grads = wanted;
  require(!grads.sigma || interp::has_width(args.version),
          "grads.sigma must be false for a version without widths");
  check_parts("grads.parts", args, grads.parts);
  if (args.batch == 0 || args.channels == 0 || !has_input(args)) return;
  if (grads.input == nullptr && (grads.sums == nullptr || args.elements == 0)) return;
  if (grads.input != nullptr) {
    const std::int64_t plane = plane_of(args);
    make_dense(plane, args.channels, grads.batch_stride, grads.channel_stride);
    // A smaller stride would let planes overlap, which nobody could write deterministically.
    check_stride("grads.batch_stride", grads.batch_stride, args.batch, plane);
    check_stride("grads.channel_stride", grads.channel_stride, args.channels, plane);
  }
  require(args.input != nullptr || grads.sums == nullptr, "input must not be null");
  require(grad_columns != nullptr || args.elements == 0, "grad_columns must not be null");
  check_workspace(args, workspace, where);
  if (where.device == DeviceType::kCuda) {
    cuda::im2col_backward(args, grad_columns, grads, workspace, where);
  } else {
    cpu::im2col_backward(args, grad_columns, grads, where.num_threads);
  }
}

void im2col_finish(const Im2colArgs& given, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, void* workspace, const Execution& where) {
  using validate::require;
  const Im2colArgs args = api::checked_im2col_elements(given, where);
  require(grad_sigma == nullptr || interp::has_width(args.version),
          "grad_sigma must be null for a version without widths");
  check_parts("parts", args, parts);
  if (args.channels == 0 || args.elements == 0) return;
  if (grad_position == nullptr && grad_sigma == nullptr) return;
  require(sums != nullptr, "sums must not be null");
  validate::require(where.device == DeviceType::kCpu || workspace != nullptr,
                    "workspace must not be null on CUDA");
  if (where.device == DeviceType::kCuda) {
    cuda::im2col_finish(args, sums, parts, grad_position, grad_sigma, workspace, where);
  } else {
    cpu::im2col_finish(args, sums, parts, grad_position, grad_sigma, where.num_threads);
  }
}

}  // namespace dcls
