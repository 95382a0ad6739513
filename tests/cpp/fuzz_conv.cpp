// Fuzzes the direct convolution of the C++ API: see fuzz.hpp.
#include <cstdint>

#include "dcls/conv.hpp"
#include "fuzz.hpp"

using namespace dcls;
using namespace dcls::fuzz;

namespace {

/// What the documentation of the API refuses of sizes that are small, written down a second time.
bool is_valid_conv(const ConvArgs& args, const Execution& where) {
  if (!is_dtype(args.dtype) || !between(static_cast<int>(args.layout), 0, 1) || !is_valid(where) ||
      args.groups < 1 || args.in_channels % args.groups != 0 ||
      args.out_channels % args.groups != 0) {
    return false;
  }
  constexpr std::int64_t kFar = std::int64_t{1} << 31;
  for (int d = 0; d < args.ndim; ++d) {
    if (!between(args.kernel_size[d], 1, kMaxAxisSize) ||
        !between(args.stride[d], 1, kMaxAxisSize) || !between(args.dilation[d], 1, kMaxAxisSize) ||
        !between(args.padding[d], -kFar, kFar)) {
      return false;
    }
  }
  return true;
}

/// Makes of any sizes those of a depthwise plane that the fast FIR algorithm may take.
void make_dense(ConvArgs& args) {
  args.ndim = 2;
  args.batch = 1;
  args.groups = args.in_channels = args.out_channels = 1;
  for (int d = 0; d < 2; ++d) {
    args.input_size[d] = 40 + (args.input_size[d] & 15);
    args.output_size[d] = 40 + (args.output_size[d] & 15);
    args.kernel_size[d] = 11 + (args.kernel_size[d] & 7);
    args.stride[d] = 1 + (d & args.stride[d]);
    args.dilation[d] = 1 + (d & args.dilation[d]);
    args.padding[d] &= 31;
  }
}

void run(const std::uint8_t* data, std::size_t size) {
  ++counts.runs;
  Reader reader(data, size);
  ConvArgs args;
  args.dtype = static_cast<DType>(reader.integer(0, kDTypeCount - 1));
  args.layout = static_cast<Layout>(reader.integer(0, 1));
  args.ndim = static_cast<int>(reader.integer(1, 3));
  args.any_output_size = true;
  args.batch = reader.integer(0, 3);
  args.groups = reader.integer(1, 3);
  const auto read_channels = [&] {
    const bool multiple = between(args.groups, 1, 100) && reader.byte() >= 16;
    return multiple ? args.groups * (reader.byte() % 4) : reader.integer(0, 6);
  };
  args.in_channels = read_channels();
  args.out_channels = reader.byte() % 2 == 0 ? args.in_channels : read_channels();
  int axes = between(args.ndim, 1, kMaxDims) ? args.ndim : 1;
  const int longest = axes == 1 ? 60 : axes == 2 ? 20 : 8;
  for (int d = 0; d < axes; ++d) {
    args.input_size[d] = reader.integer(0, longest);
    args.output_size[d] = reader.integer(0, longest);
    args.kernel_size[d] = reader.integer(1, longest);
    if (reader.byte() % 2 == 0) args.stride[d] = reader.integer(1, 4);
    if (reader.byte() % 2 == 0) args.dilation[d] = reader.integer(1, 4);
    args.padding[d] = reader.integer(-2, longest);
  }
  const Execution where = read_execution(reader);
  const std::size_t bytes = value_bytes(args.dtype);
  const std::uint8_t nulls = reader.byte();  // one in 16 of each
  const bool dense = nulls % 16 == 5;
  if (dense) {
    make_dense(args);
    axes = 2;
  }

  const bool has_axes = between(args.ndim, 1, kMaxDims);
  const std::int64_t inputs = small_product(
      {args.batch, args.in_channels, has_axes ? small_points(args.input_size, args.ndim) : -1});
  const std::int64_t outputs = small_product(
      {args.batch, args.out_channels, has_axes ? small_points(args.output_size, args.ndim) : -1});
  const std::int64_t cells =
      small_product({args.in_channels, args.out_channels,
                     has_axes ? small_points(args.kernel_size, args.ndim) : -1});
  if (inputs < 0 || outputs < 0 || cells < 0) {
    // With null pointers these must be refused, unless there is nothing to compute.
    const bool output = outcome(
        where, [&] { direct_conv(args, nullptr, nullptr, nullptr, nullptr, nullptr, where); });
    const bool grad_input = outcome(where, [&] {
      direct_conv_backward_input(args, nullptr, nullptr, nullptr, nullptr, where);
    });
    const bool grad_kernel = outcome(where, [&] {
      direct_conv_backward_kernel(args, nullptr, nullptr, nullptr, nullptr, nullptr, where);
    });
    const auto is_empty = [&](std::int64_t channels, const std::int64_t (&points)[kMaxDims]) {
      bool empty = args.batch == 0 || channels == 0;
      for (int d = 0; d < axes; ++d) empty = empty || points[d] == 0;
      return empty;
    };
    if ((output && !is_empty(args.out_channels, args.output_size)) ||
        (grad_input && !is_empty(args.in_channels, args.input_size)) ||
        (grad_kernel && args.in_channels != 0 && args.out_channels != 0)) {
      stop("null pointers were taken");
    }
    ++counts.wild;
    return;
  }

  const bool valid = is_valid_conv(args, where);
  const std::int64_t kernels = valid ? cells / args.groups : cells;
  Buffer input(inputs, bytes), kernel(kernels, bytes), bias(args.out_channels, bytes);
  Buffer grad_output(outputs, bytes), support(kernels, 1);
  Buffer output(outputs, bytes), grad_input(inputs, bytes), grad_kernel(kernels, bytes);
  const void* const x = nulls % 16 == 1 ? nullptr : input.fill(reader).data();
  const void* const w = nulls % 16 == 2 ? nullptr : kernel.fill(reader).data();
  const void* const b = nulls >= 128 ? nullptr : bias.fill(reader).data();
  const void* const g = nulls % 16 == 3 ? nullptr : grad_output.fill(reader).data();
  const bool target = nulls % 16 != 4;
  // Some cells are zero, and some of them are wanted nevertheless.
  auto* const marks = static_cast<std::uint8_t*>(support.fill(reader).data());
  auto* const values = static_cast<unsigned char*>(kernel.data());
  for (std::int64_t i = 0; i < kernels; ++i) {
    if (marks[i] % 4 < 2 && (!dense || marks[i] < 16))
      std::memset(values + static_cast<std::size_t>(i) * bytes, 0, bytes);
    marks[i] = marks[i] % 4 != 0 ? 1 : 0;
  }

  const bool has_output = valid && (outputs == 0 || ((x != nullptr || inputs == 0) && target &&
                                                     (w != nullptr || args.in_channels == 0)));
  if (check_outcome("direct_conv", has_output, where, [&] {
        direct_conv(args, x, w, b, target ? output.data() : nullptr, nullptr, where);
      })) {
    ++counts.results;
    check_written("the output", output);
  }
  const bool has_input = valid && (inputs == 0 || ((g != nullptr || outputs == 0) && target &&
                                                   (w != nullptr || args.out_channels == 0)));
  if (check_outcome("direct_conv_backward_input", has_input, where, [&] {
        direct_conv_backward_input(args, g, w, target ? grad_input.data() : nullptr, nullptr,
                                   where);
      })) {
    ++counts.gradients;
    check_written("the gradient of the input", grad_input);
  }
  const bool has_kernel =
      valid &&
      (cells == 0 || ((g != nullptr || outputs == 0) && target && (x != nullptr || inputs == 0)));
  if (check_outcome("direct_conv_backward_kernel", has_kernel, where, [&] {
        direct_conv_backward_kernel(args, g, x, nulls >= 64 ? marks : nullptr,
                                    target ? grad_kernel.data() : nullptr, nullptr, where);
      })) {
    check_written("the gradient of the kernel", grad_kernel);
  }
}

}  // namespace

DCLS_FUZZ_MAIN(run, 192)
