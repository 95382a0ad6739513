#pragma once

// Tiles on their way between a tensor and shared memory.

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/conv/conv_tile.cuh"
#include "cuda/runtime/mma.cuh"

namespace dcls::cuda {

/// A point of a tile: where it is in shared memory, and in which of the tile's channels, planes,
/// rows and columns.
struct TilePoint {
  int place;
  int slot, plane, row, column;
};

/// Visits the points of a tile that are in the tensor, all threads of the block together:
/// use(address in the tensor, point). Lanes lie along the tensor's innermost axis: the channels, if
/// the tile has several, then the line. `places` are the offsets of the planes; -1 for none.
template <bool kLine, typename Storage, typename Use>
__device__ __forceinline__ void for_tile_points(const ConvPlan& plan, const Tile& tile,
                                                const std::int64_t* places, Storage* tensor,
                                                Use&& use) {
  const TileAxis& inner = kLine ? tile.y : tile.x;
  const int width = inner.high - inner.low;
  const int rows = kLine ? 1 : tile.y.high - tile.y.low;
  if (width <= 0) return;
  const int slot_bits = highest_bit(static_cast<unsigned>(plan.source_slots));
  int bits = slot_bits;  // of the lanes of a line
  while (bits < 5 && 1 << bits < width << slot_bits) ++bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = thread & (plan.source_slots - 1);
  if (slot >= tile.valid_slots) return;
  const int first = (thread & ((1 << bits) - 1)) >> slot_bits;
  const int step = 1 << (bits - slot_bits);
  const int lines = static_cast<int>(blockDim.x) >> bits;  // at a time
  const int low = kLine ? 0 : tile.y.low;
  // Addresses move by sums alone: products of 64 bits for each line would cost more than the copy.
  const std::int64_t far = step * inner.step;
  const std::int64_t down = kLine ? 0 : lines * tile.y.step;
  Storage* const corner = tensor + slot * tile.channel_pitch + inner.first +
                          (inner.low + first) * inner.step +
                          (kLine ? 0 : tile.y.first + low * tile.y.step);
  int row = thread >> bits;  // among those of this plane and the next ones
  for (int plane = 0; plane < plan.planes; ++plane, row -= rows) {
    const std::int64_t begin = places[plane];
    Storage* line = corner + begin + (kLine ? 0 : row * tile.y.step);
    int place = slot * plan.slot_size + plane * plan.plane_size +
                (kLine ? 0 : (low + row) * plan.pitch) + inner.low;
    for (; row < rows; row += lines) {
      if (begin >= 0) {
        Storage* at = line;
        for (int i = first; i < width; i += step) {
          const int along = inner.low + i;
          use(at, TilePoint{place + i, slot, plane, kLine ? along : low + row, kLine ? 0 : along});
          at += far;
        }
      }
      line += down;
      place += kLine ? 0 : lines * plan.pitch;
    }
  }
}

/// Loads a tile, with zeros outside the tensor. Has a barrier inside; the caller's must follow.
template <bool kLine, typename Storage, typename T>
__device__ __forceinline__ void load_tile(const ConvPlan& plan, const Tile& tile,
                                          const std::int64_t* places, const Storage* begin,
                                          T* shared) {
  // Past the registers, so that a thread has many copies under way.
  constexpr bool kAsync = std::is_same_v<Storage, T> && kTensorCores;
  clear_shared(shared, tile_bytes(plan, sizeof(T)));
  __syncthreads();
  for_tile_points<kLine>(plan, tile, places, begin, [&](const Storage* from, const TilePoint& at) {
    if constexpr (kAsync) {
      copy_async<sizeof(T)>(shared + at.place, from);
    } else {
      shared[at.place] = numeric::load(*from);
    }
  });
  if constexpr (kAsync) {
    copy_async_commit();
    copy_async_wait<0>();
  }
}

/// Stores the part of a tile that is in the tensor; see(value) for each.
template <bool kLine, typename Storage, typename T, typename See>
__device__ __forceinline__ void store_tile(const ConvPlan& plan, const Tile& tile,
                                           const std::int64_t* places, const T* shared,
                                           Storage* begin, See&& see) {
  for_tile_points<kLine>(plan, tile, places, begin, [&](Storage* to, const TilePoint& at) {
    const T value = shared[at.place];
    see(value);
    numeric::store(to, value);
  });
}

}  // namespace dcls::cuda
