#pragma once

// What a block of the tensor-core kernels has in shared memory: tiles of 16-bit values, and the
// fragments of the Toeplitz matrices.

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/conv/toeplitz_plan.hpp"
#include "cuda/runtime/mma.cuh"

namespace dcls::cuda {

/// A tile of the images of a tensor, `planes` from image `image` on, for `slots` channels. Its rows
/// and columns are those of the plane from (y, x) on.
struct ToeplitzTile {
  std::int32_t height, width;  ///< of the tensor's planes
  std::int32_t image, y, x;    ///< of the first value
  std::int32_t slots, planes, rows, columns;
  std::int32_t tail;                            ///< rows behind the last plane, of zeros
  std::int32_t pitch, plane_pitch, slot_pitch;  ///< in shared memory
  std::int32_t copy;                            ///< values that are moved at once
};

/// Where a block works.
struct ToeplitzPlace {
  std::int32_t channel, channels, image, y, x;

  __device__ __forceinline__ ToeplitzPlace(const ToeplitzPlan& plan, std::int64_t item) {
    channel = static_cast<std::int32_t>(item % plan.channel_blocks) * plan.slots;
    const std::int32_t rest = plan.channels - channel;
    channels = rest < plan.slots ? rest : plan.slots;
    auto tile = static_cast<std::int32_t>(item / plan.channel_blocks);
    x = tile % plan.tiles_x * plan.column_tiles * kBlock;
    tile /= plan.tiles_x;
    y = tile % plan.tiles_y * plan.rows;
    image = tile / plan.tiles_y * plan.planes;
  }
};

/// The tile of the source that a block reads, of column blocks `begin` to `end` - 1.
__device__ __forceinline__ ToeplitzTile source_tile(const ToeplitzPlan& plan,
                                                    const ToeplitzPlace& place, int begin,
                                                    int end) {
  const int x = place.x - plan.lead + begin * kBlock;
  return {plan.source_height,
          plan.source_width,
          place.image,
          place.y - plan.padding,
          x,
          plan.slots,
          plan.planes,
          plan.plane_rows,
          (end - begin) * kBlock,
          plan.shared,
          plan.pitch,
          plan.plane_pitch,
          plan.slot_pitch,
          plan.copy};
}
/// The tile of the target that it writes; rows behind the last plane repeat nothing.
__device__ __forceinline__ ToeplitzTile target_tile(const ToeplitzPlan& plan,
                                                    const ToeplitzPlace& place) {
  const int left = plan.target_width - place.x;
  const int most = plan.column_tiles * kBlock;
  return {plan.target_height,
          plan.target_width,
          place.image,
          place.y,
          place.x,
          plan.slots,
          plan.planes,
          plan.rows,
          left < most ? left : most,
          0,
          plan.target_pitch,
          plan.rows * plan.target_pitch,
          plan.slot_pitch,
          plan.store};
}

/// The tile of the gradient of the output, for that of the kernel: with rows of zeros at its end.
__device__ __forceinline__ ToeplitzTile gradient_tile(const ToeplitzKernelPlan& plan,
                                                      const ToeplitzPlace& place) {
  const int rows = plan.planes * plan.rows;
  return {plan.target_height,
          plan.target_width,
          place.image,
          place.y,
          place.x,
          plan.slots,
          plan.planes,
          plan.rows,
          plan.column_tiles * kBlock,
          (rows + 15) / 16 * 16 - rows,
          plan.target_pitch,
          plan.rows * plan.target_pitch,
          plan.target_slot,
          plan.store};
}

/// Rows of a tile one after another, shared out among the threads of a block: calls
/// use(plane, row) for each of this thread, whose items of it are `first`, `first` + `step`, ...
template <typename Use>
__device__ __forceinline__ void for_tile_rows(int planes, int rows, int tail, int items,
                                              Use&& use) {
  int bits = 0;
  while (bits < 5 && 1 << bits < items) ++bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x) >> bits;
  const int all = planes * rows + tail;
  int row = thread >> bits;
  if (row >= step) return;  // the rest of a block that is no multiple of the group
  int plane = row / rows;
  int own = row - plane * rows;
  for (; row < all; row += step) {
    use(plane, own, thread & ((1 << bits) - 1), 1 << bits);
    own += step;
    while (own >= rows) {
      own -= rows;
      ++plane;
    }
  }
}

/// Values of 16 bits that are moved at once.
template <int kCount>
struct alignas(2 * kCount) HalfVector {
  std::uint16_t value[kCount];
};

template <int kCopy, typename Storage>
__device__ void load_rows(const ToeplitzPlan& plan, const ToeplitzTile& tile, const Storage* from,
                          Storage* shared) {
  const std::int64_t points = std::int64_t{tile.height} * tile.width;
  for_tile_rows(
      tile.planes, tile.rows, tile.tail, tile.pitch / kCopy,
      [&](int plane, int row, int first, int step) {
        const int y = tile.y + row;
        const bool exists =
            plane < tile.planes && tile.image + plane < plan.batch && y >= 0 && y < tile.height;
        const Storage* const line =
            exists ? from + (tile.image + plane) * (plan.channels * points) + y * tile.width : from;
        Storage* const to = shared + plane * tile.plane_pitch + row * tile.pitch;
        for (int i = first; i < tile.pitch / kCopy; i += step) {
          const int x = tile.x + i * kCopy;
          const bool inside = exists && x >= 0 && x < tile.width && i * kCopy < tile.columns;
          if constexpr (kCopy * sizeof(Storage) >= 4) {
            copy_async_filled<kCopy* static_cast<int>(sizeof(Storage))>(
                to + i * kCopy, inside ? line + x : from, inside);
          } else {
            to[i] = inside ? line[x] : Storage{};
          }
        }
      });
}

/// The same of channels_last: the channels of a pixel lie together.
template <int kSlots, typename Storage>
__device__ void load_pixels(const ToeplitzPlan& plan, const ToeplitzTile& tile, const Storage* from,
                            int channels, Storage* shared) {
  for_tile_rows(
      tile.planes, tile.rows, tile.tail, tile.pitch, [&](int plane, int row, int first, int step) {
        const int y = tile.y + row;
        const bool exists =
            plane < tile.planes && tile.image + plane < plan.batch && y >= 0 && y < tile.height;
        const std::int64_t line =
            (static_cast<std::int64_t>(tile.image + plane) * tile.height + y) * tile.width;
        Storage* const to = shared + plane * tile.plane_pitch + row * tile.pitch;
        for (int i = first; i < tile.pitch; i += step) {
          const int x = tile.x + i;
          const bool inside = exists && x >= 0 && x < tile.width && i < tile.columns;
          if constexpr (kSlots > 1) {
            HalfVector<kSlots> pixel{};
            if (inside) {
              pixel =
                  *reinterpret_cast<const HalfVector<kSlots>*>(from + (line + x) * plan.channels);
            }
#pragma unroll
            for (int slot = 0; slot < kSlots; ++slot) {
              to[slot * tile.slot_pitch + i].bits = pixel.value[slot];
            }
          } else {
            for (int slot = 0; slot < tile.slots; ++slot) {
              to[slot * tile.slot_pitch + i] =
                  inside && slot < channels ? from[(line + x) * plan.channels + slot] : Storage{};
            }
          }
        }
      });
}

/// Begins to load a tile: zeros outside the tensor, and between the planes. It is there after a
/// wait for all copies and a barrier. `from` is the tensor at the first channel.
template <typename Storage>
__device__ void load_tile(const ToeplitzPlan& plan, const ToeplitzTile& tile, const Storage* from,
                          int channels, Storage* shared) {
  if (plan.channels_last) {
    switch (tile.copy) {
      case 8: load_pixels<8>(plan, tile, from, channels, shared); break;
      default: load_pixels<1>(plan, tile, from, channels, shared);
    }
  } else {
    switch (tile.copy) {
      case 8: load_rows<8>(plan, tile, from, shared); break;
      case 2: load_rows<2>(plan, tile, from, shared); break;
      default: load_rows<1>(plan, tile, from, shared);
    }
  }
  const int extra = tile.plane_pitch - tile.rows * tile.pitch;  // less than 8 blocks
  for (int i = static_cast<int>(threadIdx.x); extra > 0 && i < tile.slots * tile.planes * 64;
       i += static_cast<int>(blockDim.x)) {
    const int plane = i / 64 % tile.planes;
    const int slot = i / 64 / tile.planes;
    if (i % 64 >= extra) continue;
    shared[slot * tile.slot_pitch + plane * tile.plane_pitch + tile.rows * tile.pitch + i % 64] =
        Storage{};
  }
  copy_async_commit();
}

template <int kStore, typename Storage>
__device__ void store_rows(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                           const Storage* shared, Storage* to) {
  using Vector = HalfVector<kStore>;
  const std::int64_t points = std::int64_t{tile.height} * tile.width;
  for_tile_rows(tile.planes, tile.rows, 0, tile.columns / kStore,
                [&](int plane, int row, int first, int step) {
                  if (tile.image + plane >= plan.batch || tile.y + row >= tile.height) return;
                  const Storage* const from = shared + plane * tile.plane_pitch + row * tile.pitch;
                  Storage* const line = to + (tile.image + plane) * (plan.channels * points) +
                                        (tile.y + row) * tile.width + tile.x;
                  for (int i = first * kStore; i < tile.columns; i += step * kStore) {
                    *reinterpret_cast<Vector*>(line + i) =
                        *reinterpret_cast<const Vector*>(from + i);
                  }
                });
}

template <int kSlots, typename Storage>
__device__ void store_pixels(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                             const Storage* shared, int channels, Storage* to) {
  for_tile_rows(tile.planes, tile.rows, 0, tile.columns,
                [&](int plane, int row, int first, int step) {
                  if (tile.image + plane >= plan.batch || tile.y + row >= tile.height) return;
                  const Storage* const from = shared + plane * tile.plane_pitch + row * tile.pitch;
                  const std::int64_t line =
                      (static_cast<std::int64_t>(tile.image + plane) * tile.height + tile.y + row) *
                          tile.width +
                      tile.x;
                  for (int i = first; i < tile.columns; i += step) {
                    Storage* const pixel = to + (line + i) * plan.channels;
                    if constexpr (kSlots > 1) {
                      HalfVector<kSlots> all;
#pragma unroll
                      for (int slot = 0; slot < kSlots; ++slot) {
                        all.value[slot] = from[slot * tile.slot_pitch + i].bits;
                      }
                      *reinterpret_cast<HalfVector<kSlots>*>(pixel) = all;
                    } else {
                      for (int slot = 0; slot < channels; ++slot)
                        pixel[slot] = from[slot * tile.slot_pitch + i];
                    }
                  }
                });
}

/// Stores a tile: what of it is in the tensor. `to` is the tensor at the first channel.
template <typename Storage>
__device__ void store_tile(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                           const Storage* shared, int channels, Storage* to) {
  if (plan.channels_last) {
    switch (tile.copy) {
      case 8: store_pixels<8>(plan, tile, shared, channels, to); break;
      default: store_pixels<1>(plan, tile, shared, channels, to);
    }
  } else {
    switch (tile.copy) {
      case 8: store_rows<8>(plan, tile, shared, to); break;
      case 2: store_rows<2>(plan, tile, shared, to); break;
      default: store_rows<1>(plan, tile, shared, to);
    }
  }
}

/// Whether a value is infinite or NaN.
__device__ __forceinline__ bool is_special(Half value) { return (value.bits & 0x7c00u) == 0x7c00u; }
__device__ __forceinline__ bool is_special(BFloat16 value) {
  return (value.bits & 0x7f80u) == 0x7f80u;
}

/// Where in a line (see toeplitz_plan.hpp) this lane's register of a Toeplitz matrix is. That of
/// the next column block is kBlock / 2 words behind it.
template <int kBlocks>
__device__ __forceinline__ int lane_word(int lane) {
  const int first = lane % 4 * 2 - lane / 4 + kBlock - 1;
  return first / 2 + first % 2 * (line_words(kBlocks) / 2);
}

/// Writes the lines of kernel rows `first` to `first` + `rows` - 1, for products of the column
/// blocks from `block` on. `kernel` is that of the first channel.
/// @returns whether a cell is infinite or NaN.
template <int kBlocks, typename Storage>
__device__ bool build_lines(const ToeplitzPlan& plan, const Storage* kernel, int channels,
                            int first, int rows, int block, std::uint32_t* lines) {
  constexpr int kWords = line_words(kBlocks);
  const int start = block * kBlock + plan.offset - (kBlock - 1);
  bool special = false;
  for (int slot = 0; slot < channels; ++slot) {
    const Storage* const cells = kernel + slot * plan.kernel_height * plan.kernel_width;
    std::uint32_t* const to = lines + slot * plan.kernel_rows * kWords;
    for (int i = static_cast<int>(threadIdx.x); i < rows * kWords;
         i += static_cast<int>(blockDim.x)) {
      const int r = first + i / kWords;
      const Storage* const row =
          cells + (plan.mirrored ? plan.kernel_height - 1 - r : r) * plan.kernel_width;
      const int c = start + i % (kWords / 2) * 2 + i / (kWords / 2) % 2;
      std::uint32_t pair = 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (c + half < 0 || c + half >= plan.kernel_width) continue;
        const Storage value = row[plan.mirrored ? plan.kernel_width - 1 - c - half : c + half];
        special = special || is_special(value);
        pair |= static_cast<std::uint32_t>(value.bits) << 16 * half;
      }
      to[i] = pair;
    }
  }
  return special;
}

}  // namespace dcls::cuda
