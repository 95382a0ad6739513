#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/conv/channels_first_plan.hpp"
#include "cuda/conv/toeplitz_tile.cuh"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

inline constexpr int kCopyThreads = 256;

/// Calls function(std::true_type) or function(std::false_type): loops without the test.
template <typename Function>
__device__ __forceinline__ void with_flag(bool flag, Function&& function) {
  if (flag) {
    function(std::true_type{});
  } else {
    function(std::false_type{});
  }
}

/// A word with the first `count` values at `from`, zeros in place of others. kWhole: it has all, or
/// none.
template <bool kWhole, typename Raw>
__device__ __forceinline__ std::uint32_t load_word(const Raw* from, int count) {
  if (count <= 0) return 0;
  if constexpr (kWhole || sizeof(Raw) == 4) return *reinterpret_cast<const std::uint32_t*>(from);
  std::uint32_t word = from[0];
  if (count > 1) word |= static_cast<std::uint32_t>(from[1]) << 16;
  return word;
}
template <bool kWhole, typename Raw>
__device__ __forceinline__ void store_word(Raw* to, std::uint32_t word, int count) {
  if (count <= 0) return;
  if constexpr (kWhole || sizeof(Raw) == 4) {
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
  constexpr int kWarps = kCopyThreads / 32, kTurns = kSquareWords / kWarps;
  // A word has kPer points of a channel: channel kPer * w + s of the square is in row
  // s * kSquareWords + w, so that the lanes that write a column meet different banks.
  __shared__ std::uint32_t memory[kSide][kSquareWords + 1];
  auto* const square = memory;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (std::int64_t item = blockIdx.x; item < copy_blocks(plan); item += gridDim.x) {
    const bool first = item < plan.input.squares;
    const ChannelsFirstCopy copy = first ? plan.input : plan.grad_output;
    std::int64_t rest = first ? item : item - plan.input.squares;
    const std::int64_t channel = geometry::take(rest, plan.channel_squares) * kSide;
    const std::int64_t point = geometry::take(rest, copy.point_squares) * kSide;
    const std::int64_t image = rest * copy.points * plan.channels;
    const auto up_to_side = [](std::int64_t count) {
      return static_cast<int>(count < kSide ? count : kSide);
    };
    const int channels = up_to_side(plan.channels - channel);  // of the square
    const int points = up_to_side(copy.points - point);
    __syncthreads();  // the last square has been read
    with_flag(copy.reads_words, [&](auto whole) {
      const Raw* from = static_cast<const Raw*>(copy.from) + image +
                        (point + warp * kPer) * plan.channels + channel + lane * kPer;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int column = turn * kWarps + warp;
        std::uint32_t words[kPer];
#pragma unroll
        for (int s = 0; s < kPer; ++s) {
          const bool exists = column * kPer + s < points;
          words[s] =
              load_word<whole.value>(from + s * plan.channels, exists ? channels - lane * kPer : 0);
        }
        from += kWarps * kPer * plan.channels;
#pragma unroll
        for (int s = 0; s < kPer; ++s) {
          square[s * kSquareWords + lane][column] = kPer == 1 ? words[0]
                                                    : s == 0
                                                        ? low_halves(words[0], words[kPer - 1])
                                                        : high_halves(words[0], words[kPer - 1]);
        }
      }
    });
    __syncthreads();
    with_flag(copy.writes_words, [&](auto whole) {
      Raw* to = static_cast<Raw*>(copy.to) + image + (channel + warp * kPer) * copy.points + point +
                lane * kPer;
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int row = turn * kWarps + warp;
#pragma unroll
        for (int s = 0; s < kPer; ++s) {
          if (row * kPer + s >= channels) continue;
          store_word<whole.value>(to + s * copy.points, square[s * kSquareWords + row][lane],
                                  points - lane * kPer);
        }
        to += kWarps * kPer * copy.points;
      }
    });
  }
}

}  // namespace dcls::cuda
