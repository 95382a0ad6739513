#pragma once

// What a block of the tensor-core kernels has in shared memory: tiles of the tensors, and the
// fragments of the Toeplitz matrices. Storage is Half, BFloat16, or float for TF32.

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/conv/toeplitz_plan.hpp"
#include "cuda/runtime/mma.cuh"

namespace dcls::cuda {

/// A tile of the images of a tensor, `planes` from image `image` on. In each plane it starts at the
/// point (y, x). Some of its rows and columns may lie outside the plane.
struct ToeplitzTile {
  std::int32_t height, width;  ///< of the tensor's planes
  std::int32_t image, y, x;    ///< of the first value
  std::int32_t planes, rows, columns;
  std::int32_t pitch, plane_pitch, slot_pitch;  ///< in shared memory
  std::int32_t copy;                            ///< values that are moved at once
};

/// Where a tile of the target is.
struct ToeplitzPlace {
  std::int32_t image, y, x;

  __device__ __forceinline__ ToeplitzPlace(const ToeplitzTiles& plan, std::int32_t tile) {
    x = tile % plan.tiles_x * plan.column_tiles * kBlock;
    tile /= plan.tiles_x;
    y = tile % plan.tiles_y * plan.rows;
    image = tile / plan.tiles_y * plan.planes;
  }
};

/// The tile of the source that a block reads, of column blocks `begin` to `end` - 1.
__device__ __forceinline__ ToeplitzTile source_tile(const ToeplitzTiles& plan,
                                                    const ToeplitzPlace& place, int begin,
                                                    int end) {
  const int x = place.x - plan.lead + begin * kBlock;
  return {plan.source_height,
          plan.source_width,
          place.image,
          place.y - plan.padding,
          x,
          plan.planes,
          plan.plane_rows,
          (end - begin) * kBlock,
          plan.pitch,
          plan.plane_pitch,
          plan.slot_pitch,
          plan.copy};
}
/// The tile of the target, its channels `slot_pitch` values apart in shared memory.
__device__ __forceinline__ ToeplitzTile target_tile(const ToeplitzTiles& plan,
                                                    const ToeplitzPlace& place, int slot_pitch) {
  return {plan.target_height,
          plan.target_width,
          place.image,
          place.y,
          place.x,
          plan.planes,
          plan.rows,
          plan.column_tiles * kBlock,
          plan.target_pitch,
          plan.rows * plan.target_pitch,
          slot_pitch,
          plan.store};
}

/// Shares out what of a tile is in the tensor among the threads of a block, `values` columns of a
/// row at a time: calls use(column, at, shared) for each of this thread. They begin in `column` of
/// the tile, at `at` in `tensor`, and at `shared` in shared memory. From a point of the tensor to
/// the next it is `pitch` values.
///
/// A thread keeps its columns, and goes from row to row by sums: no product and no division.
template <typename Tensor, typename Use>
__device__ __forceinline__ void for_tile(const ToeplitzTiles& plan, const ToeplitzTile& tile,
                                         int values, std::int64_t pitch, Tensor* tensor,
                                         Use&& use) {
  const int top = tile.y < 0 ? -tile.y : 0, below = tile.height - tile.y;
  const int edge = tile.x < 0 ? -tile.x / values * values : 0, beside = tile.width - tile.x;
  const int left = plan.batch - tile.image;
  const int planes = left < tile.planes ? left : tile.planes;
  const int rows = (below < tile.rows ? below : tile.rows) - top;
  const int items = ((beside < tile.columns ? beside : tile.columns) - edge + values - 1) / values;
  if (rows <= 0 || items <= 0) return;
  int bits = 0;
  while (bits < 5 && 1 << bits < items) ++bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int step = static_cast<int>(blockDim.x) >> bits;
  const int first = thread >> bits;
  if (first >= step) return;  // the rest of a block that is no multiple of the group
  const int first_plane = first / rows, first_row = first - first_plane * rows;
  const int step_planes = step / rows, step_rows = step - step_planes * rows;
  const std::int64_t row_pitch = pitch * tile.width;
  const std::int64_t image_pitch = std::int64_t{tile.height} * tile.width * plan.channels;
  const std::int64_t step_at = step_planes * image_pitch + step_rows * row_pitch;
  const std::int64_t wrap_at = step_at + image_pitch - rows * row_pitch;
  const int step_shared = step_planes * tile.plane_pitch + step_rows * tile.pitch;
  const int wrap_shared = step_shared + tile.plane_pitch - rows * tile.pitch;
  for (int item = thread & ((1 << bits) - 1); item < items; item += 1 << bits) {
    const int column = edge + item * values;
    Tensor* at = tensor + (tile.image + first_plane) * image_pitch +
                 (tile.y + top + first_row) * row_pitch + (tile.x + column) * pitch;
    int shared = first_plane * tile.plane_pitch + (top + first_row) * tile.pitch + column;
    int row = first_row;
    for (int i = first; i < planes * rows; i += step) {
      use(column, at, shared);
      row += step_rows;
      const bool wraps = row >= rows;
      row -= wraps ? rows : 0;
      at += wraps ? wrap_at : step_at;
      shared += wraps ? wrap_shared : step_shared;
    }
  }
}

/// Calls function(std::integral_constant) with the one of kCounts that is `count`.
template <int... kCounts, typename Function>
__device__ __forceinline__ void with_count(int count, Function&& function) {
  const auto call = [&](auto constant) {
    if (count == constant.value) function(constant);
    return count == constant.value;
  };
  (call(std::integral_constant<int, kCounts>{}) || ...);
}

/// The same with the values of a row that may be copied at once.
template <typename Storage, typename Function>
__device__ __forceinline__ void with_row_copy(int count, Function&& function) {
  if constexpr (sizeof(Storage) == 4) {
    with_count<4, 2, 1>(count, function);
  } else {
    with_count<8, 4, 2, 1>(count, function);
  }
}

/// Values that are moved at once: those of 16 bits in pairs if there are several.
template <typename Storage, int kCount>
struct alignas(sizeof(Storage) * kCount) ValueVector {
  static constexpr std::size_t kBytes = sizeof(Storage) * kCount;
  using Part = std::conditional_t<kBytes == 2, std::uint16_t, std::uint32_t>;
  Part part[kBytes / sizeof(Part)];
};

/// The two low halves of a and b, and the two high ones.
__device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
  return (a & 0xffffu) | b << 16;
}
__device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
  return a >> 16 | (b & 0xffff0000u);
}

/// Begins to load what of a tile is in a tensor in channels_first, one channel of it.
template <typename Storage>
__device__ void load_rows(const ToeplitzTiles& plan, const ToeplitzTile& tile, const Storage* from,
                          Storage* shared) {
  with_row_copy<Storage>(tile.copy, [&](auto count) {
    constexpr int kCopy = count.value;
    for_tile(plan, tile, kCopy, 1, from, [&](int, const Storage* at, int to) {
      if constexpr (kCopy * sizeof(Storage) >= 4) {
        copy_async<kCopy* static_cast<int>(sizeof(Storage))>(shared + to, at);
      } else {
        shared[to] = *at;
      }
    });
  });
}

/// The same of channels_last: the channels of a pixel lie together, kSlots are moved at once. A
/// thread moves the pixels of a word of shared memory, which has one value of each.
template <int kSlots, typename Storage>
__device__ void load_pixels(const ToeplitzPlan& plan, const ToeplitzTile& tile, const Storage* from,
                            int channels, Storage* shared) {
  constexpr int kPixels = kPerRegister<Storage>;
  using Vector = ValueVector<Storage, kSlots>;
  for_tile(plan, tile, kPixels, plan.channels, from, [&](int column, const Storage* at, int to) {
    for (int slot = 0; slot < channels; slot += kSlots) {
      Vector pixels[kPixels] = {};
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const int x = tile.x + column + i;
        if (x < 0 || x >= tile.width) continue;
        pixels[i] = *reinterpret_cast<const Vector*>(at + std::int64_t{i} * plan.channels + slot);
      }
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        const std::uint32_t a = pixels[0].part[s / kPixels];
        const std::uint32_t b = pixels[kPixels - 1].part[s / kPixels];
        *reinterpret_cast<std::uint32_t*>(shared + (slot + s) * tile.slot_pitch + to) =
            kPixels == 1 ? a
            : s % 2 == 0 ? low_halves(a, b)
                         : high_halves(a, b);
      }
    }
  });
}

/// Begins to load what of a tile is in the tensor. It is there after a wait for all copies and a
/// barrier. What is around it must be zeros. `from` is the tensor at the first channel.
template <typename Storage>
__device__ void load_tile(const ToeplitzPlan& plan, const ToeplitzTile& tile, const Storage* from,
                          int channels, Storage* shared) {
  if (plan.channels_last) {
    with_count<toeplitz_slots(sizeof(Storage)), 1>(tile.copy, [&](auto count) {
      load_pixels<count.value>(plan, tile, from, channels, shared);
    });
  } else {
    load_rows(plan, tile, from, shared);
  }
  copy_async_commit();
}

template <int kStore, typename Storage>
__device__ void store_rows(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                           const Storage* shared, Storage* to) {
  using Vector = ValueVector<Storage, kStore>;
  for_tile(plan, tile, kStore, 1, to, [&](int, Storage* at, int from) {
    *reinterpret_cast<Vector*>(at) = *reinterpret_cast<const Vector*>(shared + from);
  });
}

template <int kSlots, typename Storage>
__device__ void store_pixels(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                             const Storage* shared, int channels, Storage* to) {
  constexpr int kPixels = kPerRegister<Storage>;
  using Vector = ValueVector<Storage, kSlots>;
  for_tile(plan, tile, kPixels, plan.channels, to, [&](int column, Storage* at, int from) {
    for (int slot = 0; slot < channels; slot += kSlots) {
      Vector pixels[kPixels];
#pragma unroll
      for (int s = 0; s < kSlots; s += kPixels) {
        const auto word = [&](int of) {
          return *reinterpret_cast<const std::uint32_t*>(shared + of * tile.slot_pitch + from);
        };
        const std::uint32_t a = word(slot + s);
        if constexpr (kPixels == 1) {
          pixels[0].part[s] = a;
        } else {
          const std::uint32_t b = kSlots > 1 ? word(slot + s + 1) : 0;
          using Part = typename Vector::Part;
          pixels[0].part[s / 2] = static_cast<Part>(low_halves(a, b));
          pixels[1].part[s / 2] = static_cast<Part>(high_halves(a, b));
        }
      }
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        if (tile.x + column + i >= tile.width) continue;
        *reinterpret_cast<Vector*>(at + std::int64_t{i} * plan.channels + slot) = pixels[i];
      }
    }
  });
}

/// Stores a tile: what of it is in the tensor. `to` is the tensor at the first channel.
template <typename Storage>
__device__ void store_tile(const ToeplitzPlan& plan, const ToeplitzTile& tile,
                           const Storage* shared, int channels, Storage* to) {
  if (plan.channels_last) {
    with_count<toeplitz_slots(sizeof(Storage)), 1>(tile.copy, [&](auto count) {
      store_pixels<count.value>(plan, tile, shared, channels, to);
    });
  } else {
    with_row_copy<Storage>(tile.copy,
                           [&](auto count) { store_rows<count.value>(plan, tile, shared, to); });
  }
}

/// Stores two values that are next to each other.
template <typename Storage>
__device__ __forceinline__ void store_pair(Storage* to, float low, float high) {
  ValueVector<Storage, 2> pair;
  if constexpr (sizeof(Storage) == 4) {
    pair.part[0] = numeric::bit_cast<std::uint32_t>(low);
    pair.part[1] = numeric::bit_cast<std::uint32_t>(high);
  } else {
    pair.part[0] = pack<Storage>(low, high);
  }
  *reinterpret_cast<ValueVector<Storage, 2>*>(to) = pair;
}

/// Rounds `count` values in shared memory to those that tensor cores read, by all threads of the
/// block, between two barriers. Those of 16 bits are.
template <typename Storage>
__device__ __forceinline__ void round_operands(Storage* shared, int count) {
  if constexpr (sizeof(Storage) == 4) {
    using Vector = ValueVector<float, 4>;
    __syncthreads();
    auto* const all = reinterpret_cast<Vector*>(shared);
    for (int i = static_cast<int>(threadIdx.x); i < count / 4; i += static_cast<int>(blockDim.x)) {
      Vector values = all[i];
#pragma unroll
      for (std::uint32_t& bits : values.part) bits = to_tf32(numeric::bit_cast<float>(bits));
      all[i] = values;
    }
  }
}

/// Whether a value is infinite or NaN.
__device__ __forceinline__ bool is_special(float value) { return !(value - value == 0.0f); }
__device__ __forceinline__ bool is_special(Half value) { return (value.bits & 0x7c00u) == 0x7c00u; }
__device__ __forceinline__ bool is_special(BFloat16 value) {
  return (value.bits & 0x7f80u) == 0x7f80u;
}

/// Where in a line (see toeplitz_plan.hpp) this lane's first register of a Toeplitz matrix is. Its
/// next one is 4 words behind it, also that of the next column block.
template <typename Storage, int kBlocks>
__device__ __forceinline__ int lane_word(int lane) {
  constexpr int kPer = kPerRegister<Storage>;
  const int first = lane % 4 * kPer - lane / 4 + kBlock - 1;
  return first / kPer + first % kPer * (line_words(kBlocks) / kPer);
}

/// Writes the lines of kernel rows `first` to `first` + `rows` - 1, for products of the column
/// blocks from `block` on. `kernel` is that of the first channel.
/// @returns whether a cell is infinite or NaN.
template <int kBlocks, typename Storage>
__device__ bool build_lines(const ToeplitzPlan& plan, const Storage* kernel, int channels,
                            int first, int rows, int block, std::uint32_t* lines) {
  constexpr int kWords = line_words(kBlocks), kPer = kPerRegister<Storage>;
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
      const int c = start + i % (kWords / kPer) * kPer + i / (kWords / kPer) % kPer;
      std::uint32_t word = 0;
#pragma unroll
      for (int part = 0; part < kPer; ++part) {
        if (c + part < 0 || c + part >= plan.kernel_width) continue;
        const Storage value = row[plan.mirrored ? plan.kernel_width - 1 - c - part : c + part];
        special = special || is_special(value);
        word |= operand(value) << 16 * part;
      }
      to[i] = word;
    }
  }
  return special;
}

}  // namespace dcls::cuda
