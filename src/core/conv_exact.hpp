#pragma once

// Single values of the gradients of a convolution, by the plainest of loops: for the few that
// became NaN because an infinity met a zero around a tile, of which the convolution knows nothing.

#include <cstdint>

#include "core/conv_geometry.hpp"
#include "core/dtype.hpp"
#include "core/macros.hpp"
#include "dcls/conv.hpp"

namespace dcls::exact {

using geometry::product;

/// The place of a value in a tensor of `channels` channels of `points` points.
struct Place {
  std::int64_t image, channel, point;
};
DCLS_HD Place place_of(Layout layout, std::int64_t channels, std::int64_t points,
                       std::int64_t index) {
  const std::int64_t fast = layout == Layout::kChannelsLast ? channels : points;
  const std::int64_t inner = index % fast;
  const std::int64_t outer = index / fast;
  if (layout == Layout::kChannelsLast) return {outer / points, inner, outer % points};
  return {outer / channels, outer % channels, inner};
}
DCLS_HD std::int64_t index_of(Layout layout, std::int64_t channels, std::int64_t points,
                              const Place& at) {
  return layout == Layout::kChannelsLast ? (at.image * points + at.point) * channels + at.channel
                                         : (at.image * channels + at.channel) * points + at.point;
}

/// grad_input[index]: the sum over the cells that are not zero and the outputs that there are.
template <typename Storage>
DCLS_HD Compute<Storage> input_gradient(const ConvArgs& args, const Storage* grad_output,
                                        const Storage* kernel, std::int64_t index) {
  const std::int64_t outputs = product(args.output_size, args.ndim);
  const std::int64_t cells = product(args.kernel_size, args.ndim);
  const std::int64_t in_group = args.in_channels / args.groups;
  const std::int64_t out_group = args.out_channels / args.groups;
  Place at = place_of(args.layout, args.in_channels, product(args.input_size, args.ndim), index);
  const std::int64_t point = at.point;
  const std::int64_t in_channel = at.channel % in_group;
  const std::int64_t first = at.channel / in_group * out_group;
  Compute<Storage> sum = 0;
  for (at.channel = first; at.channel < first + out_group && sum == sum; ++at.channel) {
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      bool reads = true;
      std::int64_t pitch = 1, input = point, rest = cell;
      at.point = 0;
      for (int d = args.ndim - 1; d >= 0; --d) {
        const std::int64_t place = input % args.input_size[d] + args.padding[d] -
                                   rest % args.kernel_size[d] * args.dilation[d];
        const std::int64_t output = place / args.stride[d];
        reads = reads && place >= 0 && place % args.stride[d] == 0 && output < args.output_size[d];
        at.point += output * pitch;
        pitch *= args.output_size[d];
        input /= args.input_size[d];
        rest /= args.kernel_size[d];
      }
      if (!reads) continue;
      const auto weight =
          numeric::load(kernel[(at.channel * in_group + in_channel) * cells + cell]);
      const std::int64_t from = index_of(args.layout, args.out_channels, outputs, at);
      if (weight != 0) sum += weight * numeric::load(grad_output[from]);
    }
  }
  return sum;
}

/// grad_kernel[index]: the sum over the outputs; padding is zeros that are read.
template <typename Storage>
DCLS_HD Compute<Storage> kernel_gradient(const ConvArgs& args, const Storage* grad_output,
                                         const Storage* input, std::int64_t index) {
  const std::int64_t inputs = product(args.input_size, args.ndim);
  const std::int64_t outputs = product(args.output_size, args.ndim);
  const std::int64_t cells = product(args.kernel_size, args.ndim);
  const std::int64_t in_group = args.in_channels / args.groups;
  const std::int64_t out_channel = index / cells / in_group;
  const std::int64_t group = out_channel / (args.out_channels / args.groups);
  const std::int64_t in_channel = group * in_group + index / cells % in_group;
  Compute<Storage> sum = 0;
  for (std::int64_t n = 0; n < args.batch; ++n) {
    for (std::int64_t y = 0; y < outputs && sum == sum; ++y) {
      bool inside = true;
      std::int64_t pitch = 1, point = 0, output = y, rest = index % cells;
      for (int d = args.ndim - 1; d >= 0; --d) {
        const std::int64_t x = output % args.output_size[d] * args.stride[d] - args.padding[d] +
                               rest % args.kernel_size[d] * args.dilation[d];
        inside = inside && x >= 0 && x < args.input_size[d];
        point += x * pitch;
        pitch *= args.input_size[d];
        output /= args.output_size[d];
        rest /= args.kernel_size[d];
      }
      const auto grad = numeric::load(
          grad_output[index_of(args.layout, args.out_channels, outputs, {n, out_channel, y})]);
      Compute<Storage> value = 0;
      if (inside) {
        value = numeric::load(
            input[index_of(args.layout, args.in_channels, inputs, {n, in_channel, point})]);
      }
      sum += grad * value;
    }
  }
  return sum;
}

}  // namespace dcls::exact
