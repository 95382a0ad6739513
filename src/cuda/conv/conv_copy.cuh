#pragma once

// Tiles on their way between a tensor and shared memory.

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/conv/conv_tile.cuh"
#include "cuda/runtime/mma.cuh"

namespace dcls::cuda {

/// A point of a tile: where it is, and in which of the tile's channels, planes, rows and columns.
struct TilePoint {
  std::int64_t offset;  ///< in the tensor
  int place;            ///< in shared memory
  int slot, plane, row, column;
};

/// Visits the points of a tile that are in the tensor, all threads of the block together. Lanes lie
/// along the tensor's innermost axis: the channels, if the tile has several, then the line.
/// `places` are the offsets of the planes; -1 for none.
template <bool kLine, typename Use>
__device__ __forceinline__ void for_tile_points(const ConvPlan& plan, const Tile& tile,
                                                const std::int64_t* places, Use&& use) {
  const TileAxis& inner = kLine ? tile.y : tile.x;
  const int width = inner.high - inner.low;
  const int rows = kLine ? 1 : tile.y.high - tile.y.low;
  if (width <= 0 || rows <= 0) return;
  const int slot_bits = highest_bit(static_cast<unsigned>(plan.source_slots));
  int bits = slot_bits;  // of the lanes of a line
  while (bits < 5 && 1 << bits < width << slot_bits) ++bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = thread & (plan.source_slots - 1);
  if (slot >= tile.valid_slots) return;
  const int first = (thread & ((1 << bits) - 1)) >> slot_bits;
  const int step = 1 << (bits - slot_bits);
  const int lines = static_cast<int>(blockDim.x) >> bits;  // at a time
  const std::int64_t far = step * inner.step;
  const std::int64_t origin = slot * tile.channel_pitch + inner.first +
                              (inner.low + first) * inner.step +
                              (kLine ? 0 : tile.y.first + tile.y.low * tile.y.step);
  const int corner =
      slot * plan.slot_size + inner.low + first + (kLine ? 0 : tile.y.low * plan.pitch);
  int plane = (thread >> bits) / rows;
  int row = (thread >> bits) % rows;
  while (plane < plan.planes) {
    const std::int64_t begin = places[plane];
    if (begin >= 0) {
      TilePoint at;
      at.offset = begin + origin + (kLine ? 0 : row * tile.y.step);
      at.place = corner + plane * plan.plane_size + (kLine ? 0 : row * plan.pitch);
      at.slot = slot;
      at.plane = plane;
      at.row = kLine ? inner.low + first : tile.y.low + row;
      at.column = kLine ? 0 : inner.low + first;
      int& along = kLine ? at.row : at.column;
      for (int i = first; i < width; i += step) {
        use(at);
        at.offset += far;
        at.place += step;
        along += step;
      }
    }
    row += lines % rows;
    plane += lines / rows;
    if (row >= rows) {
      row -= rows;
      ++plane;
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
  struct alignas(16) Zeros {
    float value[4];
  };
  auto* const all = reinterpret_cast<Zeros*>(shared);
  const int count = tile_bytes(plan, sizeof(T)) / static_cast<int>(sizeof(Zeros));
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    all[i] = {};
  }
  __syncthreads();
  for_tile_points<kLine>(plan, tile, places, [&](const TilePoint& at) {
    if constexpr (kAsync) {
      copy_async_filled<sizeof(T)>(shared + at.place, begin + at.offset, true);
    } else {
      shared[at.place] = numeric::load(begin[at.offset]);
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
  for_tile_points<kLine>(plan, tile, places, [&](const TilePoint& at) {
    const T value = shared[at.place];
    see(value);
    numeric::store(begin + at.offset, value);
  });
}

}  // namespace dcls::cuda
