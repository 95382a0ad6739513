#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/conv/channels_first_plan.hpp"
#include "cuda/conv/toeplitz_tile.cuh"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

inline constexpr int kCopyThreads = 256;

/// The first `count` values at `from`, as many as a word has or fewer; zeros in place of others.
template <typename Raw>
__device__ __forceinline__ std::uint32_t load_word(const Raw* from, std::int64_t count,
                                                   bool whole) {
  if (count <= 0) return 0;
  if (whole || sizeof(Raw) == 4) return *reinterpret_cast<const std::uint32_t*>(from);
  std::uint32_t word = from[0];
  if (count > 1) word |= static_cast<std::uint32_t>(from[1]) << 16;
  return word;
}
template <typename Raw>
__device__ __forceinline__ void store_word(Raw* to, std::uint32_t word, std::int64_t count,
                                           bool whole) {
  if (count <= 0) return;
  if (whole || sizeof(Raw) == 4) {
    *reinterpret_cast<std::uint32_t*>(to) = word;
  } else {
    to[0] = static_cast<Raw>(word);
    if (count > 1) to[1] = static_cast<Raw>(word >> 16);
  }
}

/// Each block copies a square of channels and points. Lanes read channels and write points.
template <typename Storage>
__global__ void __launch_bounds__(kCopyThreads) to_channels_first(const ChannelsFirst plan) {
  using Raw = std::conditional_t<sizeof(Storage) == 4, std::uint32_t, std::uint16_t>;
  constexpr int kPer = kPerRegister<Storage>, kSide = kSquareWords * kPer;
  constexpr int kWarps = kCopyThreads / 32;
  // A word has kPer points of a channel: channel kPer * w + s of the square in row
  // s * kSquareWords + w, so that the lanes that write a column meet different banks.
  __shared__ std::uint32_t square[kSide][kSquareWords + 1];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t item = blockIdx.x; item < copy_blocks(plan); item += gridDim.x) {
    const bool first = item < plan.input.squares;
    const ChannelsFirstCopy copy = first ? plan.input : plan.grad_output;
    std::int64_t rest = first ? item : item - plan.input.squares;
    const std::int64_t channel = rest % plan.channel_squares * kSide;
    rest /= plan.channel_squares;
    const std::int64_t squares = copy.points / kSide + (copy.points % kSide > 0 ? 1 : 0);
    const std::int64_t point = rest % squares * kSide;
    const std::int64_t image = rest / squares * copy.points * plan.channels;
    const Raw* const from = static_cast<const Raw*>(copy.from) + image;
    Raw* const to = static_cast<Raw*>(copy.to) + image;
    __syncthreads();  // the last square has been read
    const std::int64_t own_channel = channel + lane * kPer;
#pragma unroll
    for (int i = 0; i < kSquareWords / kWarps; ++i) {
      const int column = i * kWarps + warp;
      std::uint32_t words[kPer];
#pragma unroll
      for (int s = 0; s < kPer; ++s) {
        const std::int64_t p = point + column * kPer + s;
        words[s] = load_word(from + p * plan.channels + own_channel,
                             p < copy.points ? plan.channels - own_channel : 0, copy.reads_words);
      }
#pragma unroll
      for (int s = 0; s < kPer; ++s) {
        square[s * kSquareWords + lane][column] = kPer == 1 ? words[0]
                                                  : s == 0 ? low_halves(words[0], words[kPer - 1])
                                                           : high_halves(words[0], words[kPer - 1]);
      }
    }
    __syncthreads();
    const std::int64_t own_point = point + lane * kPer;
#pragma unroll
    for (int i = 0; i < kSide / kWarps; ++i) {
      const int row = i * kWarps + warp;
      const std::int64_t c = channel + row % kSquareWords * kPer + row / kSquareWords;
      if (c >= plan.channels) continue;
      store_word(to + c * copy.points + own_point, square[row][lane], copy.points - own_point,
                 copy.writes_words);
    }
  }
}

}  // namespace dcls::cuda
