#pragma once

// The geometry of a convolution on one axis, shared by the CPU and the CUDA back ends.
//
// Stride and dilation disappear here. Output y reads input stride * y - padding + dilation * r for
// the kernel cell r. Split the input in `stride` phases, plane a holding the points j * stride + a:
// then cell r reads plane phase(r) at y + shift(r). So each pass is a sum over cells of shifted
// planes with unit steps:
//
//   output[y]                      = sum_r kernel[r] * input_plane[phase(r)][y + shift(r)]
//   grad_input_plane[a][j]         = sum_{r: phase(r) = a} kernel[r] * grad_output[j - shift(r)]
//   grad_kernel[r]                 = sum_y grad_output[y] * input_plane[phase(r)][y + shift(r)]

#include <cstdint>

#include "core/macros.hpp"
#include "dcls/conv.hpp"

namespace dcls::geometry {

DCLS_HD std::int64_t product(const std::int64_t (&sizes)[kMaxDims], int ndim) {
  std::int64_t product = 1;
  for (int d = 0; d < ndim; ++d) product *= sizes[d];
  return product;
}

/// a / b. Most divisors are strides and the like, which are 1, and a division of 64 bits is slow on
/// a GPU.
DCLS_HD std::int64_t quotient(std::int64_t a, std::int64_t b) { return b == 1 ? a : a / b; }
/// a % b, and a becomes a / b: the fastest index of those that were put together.
DCLS_HD std::int64_t take(std::int64_t& a, std::int64_t b) {
  const std::int64_t all = a;
  a = quotient(a, b);
  return all - a * b;
}

struct AxisCell {
  std::int64_t phase;  ///< 0 to stride - 1
  std::int64_t shift;
};

/// Where the cell `r` of one axis reads.
DCLS_HD AxisCell axis_cell(std::int64_t r, std::int64_t stride, std::int64_t padding,
                           std::int64_t dilation) {
  const std::int64_t offset = r * dilation - padding;
  std::int64_t shift = quotient(offset, stride);
  if (shift * stride > offset) --shift;  // division rounds towards zero
  return {offset - shift * stride, shift};
}

DCLS_HD AxisCell axis_cell(const ConvArgs& args, int d, std::int64_t r) {
  return axis_cell(r, args.stride[d], args.padding[d], args.dilation[d]);
}

/// Number of points j with j * stride + phase < size.
DCLS_HD std::int64_t phase_length(std::int64_t size, std::int64_t phase, std::int64_t stride) {
  return size > phase ? quotient(size - phase - 1, stride) + 1 : 0;
}

/// Whether a plane of `length` points, shifted by `shift`, meets any of `others` points.
DCLS_HD bool meets(std::int64_t shift, std::int64_t length, std::int64_t others) {
  return length > 0 && shift < length && shift + others > 0;
}

/// Whether the cell `r` of axis `d` reads any input point at all: the others meet zeros only.
DCLS_HD bool reads_input(const ConvArgs& args, int d, std::int64_t r) {
  const AxisCell cell = axis_cell(args, d, r);
  const std::int64_t length = phase_length(args.input_size[d], cell.phase, args.stride[d]);
  return meets(cell.shift, length, args.output_size[d]);
}

/// The step m for which cells r and r + m read one plane at neighbouring points, shift(r + m) =
/// shift(r) + 1; 0 if there is none.
DCLS_HD std::int64_t neighbour_step(const ConvArgs& args, int d) {
  return args.stride[d] % args.dilation[d] == 0 ? args.stride[d] / args.dilation[d] : 0;
}

/// Whether the input, or the output, of a convolution has no values.
DCLS_HD bool no_input(const ConvArgs& args) {
  std::int64_t points = args.batch != 0 && args.in_channels != 0 ? 1 : 0;
  for (int d = 0; d < args.ndim; ++d) points = args.input_size[d] != 0 ? points : 0;
  return points == 0;
}
DCLS_HD bool no_output(const ConvArgs& args) {
  std::int64_t points = args.batch != 0 && args.out_channels != 0 ? 1 : 0;
  for (int d = 0; d < args.ndim; ++d) points = args.output_size[d] != 0 ? points : 0;
  return points == 0;
}

}  // namespace dcls::geometry
