#pragma once

// Copies of channels_last tensors in channels_first, for kernels whose blocks read all points of a
// channel: of channels_last a block would read a few bytes of each line of the cache, many times.

#include <cstddef>
#include <cstdint>

#include "core/conv_geometry.hpp"
#include "core/dispatch.hpp"
#include "core/macros.hpp"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Words of 4 bytes on each side of the square of channels and points that a block copies.
inline constexpr int kSquareWords = 32;

/// One tensor: (batch, points, channels) at `from`, (batch, channels, points) at `to`.
struct ChannelsFirstCopy {
  const void* from = nullptr;
  void* to = nullptr;
  std::int64_t points = 0;
  std::int64_t point_squares = 0;
  std::int64_t squares = 0;                        ///< of all images and channels
  bool reads_words = false, writes_words = false;  ///< or value by value
};

/// Two tensors of the same channels, copied by one launch.
struct ChannelsFirst {
  std::int64_t batch = 0, channels = 0;
  std::int64_t channel_squares = 0;
  ChannelsFirstCopy input, grad_output;
};

DCLS_HD std::int64_t copy_blocks(const ChannelsFirst& plan) {
  return plan.input.squares + plan.grad_output.squares;
}

/// Whether the tensors of a depthwise problem are copied. One channel is the same in both layouts.
inline bool needs_channels_first(const ConvArgs& args) {
  return args.layout == Layout::kChannelsLast && args.groups > 1;
}

namespace detail {
inline std::size_t copy_bytes(const ConvArgs& args, const std::int64_t (&size)[kMaxDims]) {
  return aligned_bytes(args.batch * args.groups * geometry::product(size, args.ndim),
                       storage_bytes(args.dtype));
}
}  // namespace detail

/// Memory of both copies.
inline std::size_t channels_first_bytes(const ConvArgs& args) {
  if (!needs_channels_first(args)) return 0;
  return detail::copy_bytes(args, args.input_size) + detail::copy_bytes(args, args.output_size);
}

/// The copies to `memory`, channels_first_bytes() long.
inline ChannelsFirst make_channels_first(const ConvArgs& args, const void* input,
                                         const void* grad_output, void* memory) {
  const std::int64_t per_word = 4 / static_cast<std::int64_t>(storage_bytes(args.dtype));
  ChannelsFirst copies;
  copies.batch = args.batch;
  copies.channels = args.groups;
  copies.channel_squares = divide_up(copies.channels, kSquareWords * per_word);
  const auto copy = [&](const void* from, void* to, const std::int64_t (&size)[kMaxDims]) {
    ChannelsFirstCopy c;
    c.from = from;
    c.to = to;
    c.points = geometry::product(size, args.ndim);
    c.point_squares = divide_up(c.points, kSquareWords * per_word);
    c.squares = copies.batch * copies.channel_squares * c.point_squares;
    c.reads_words =
        copies.channels % per_word == 0 && reinterpret_cast<std::uintptr_t>(from) % 4 == 0;
    c.writes_words = c.points % per_word == 0;
    return c;
  };
  copies.input = copy(input, memory, args.input_size);
  copies.grad_output =
      copy(grad_output, static_cast<std::byte*>(memory) + detail::copy_bytes(args, args.input_size),
           args.output_size);
  return copies;
}

}  // namespace dcls::cuda
