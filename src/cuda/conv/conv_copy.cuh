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
  if (width <= 0) return;
  const int slot_bits = highest_bit(static_cast<unsigned>(plan.source_slots));
  int bits = slot_bits;  // of the lanes of a row
  while (bits < 5 && 1 << bits < width << slot_bits) ++bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = thread & (plan.source_slots - 1);
  if (slot >= tile.valid_slots) return;
  const int first = (thread & ((1 << bits) - 1)) >> slot_bits;
  const int across = 1 << (bits - slot_bits);             // columns at a time
  const int down = static_cast<int>(blockDim.x) >> bits;  // rows at a time
  const int low = kLine ? 0 : tile.y.low;
  const int rows = tile.y.high - low;
  // The innermost loop is the longest one: along a line, else down the rows, for one strip of the
  // columns after the other. Addresses move by sums alone: products of 64 bits for each row would
  // cost more than the copy.
  const int stride = kLine ? across : down;
  const int place_step = kLine ? stride : stride * plan.pitch;
  const std::int64_t step = stride * (kLine ? inner.step : tile.y.step);
  Storage* strip = tensor + slot * tile.channel_pitch + inner.first +
                   (inner.low + first) * inner.step +
                   (kLine ? 0 : tile.y.first + low * tile.y.step);
  for (int i = first; i < width; i += across) {
    int row = thread >> bits;  // among those of this plane and the next ones
    for (int plane = 0; plane < plan.planes; ++plane) {
      if constexpr (kLine) {
        if (row-- > 0) continue;  // of other lanes
        row = down - 1;
      }
      const std::int64_t begin = places[plane];
      Storage* at = strip + begin + (kLine ? 0 : row * tile.y.step);
      int place = slot * plan.slot_size + plane * plan.plane_size + inner.low + i +
                  (kLine ? 0 : (low + row) * plan.pitch);
      const int length = kLine ? width : rows;
      int n = kLine ? i : row;
      if (begin >= 0) {
#pragma unroll 2
        for (; n < length; n += stride) {
          use(at, TilePoint{place, slot, plane, kLine ? inner.low + n : low + n,
                            kLine ? 0 : inner.low + i});
          at += step;
          place += place_step;
        }
      }
      if constexpr (!kLine) {
        while (n < rows) n += down;
        row = n - rows;
      }
    }
    if (kLine) break;
    strip += across * inner.step;
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
