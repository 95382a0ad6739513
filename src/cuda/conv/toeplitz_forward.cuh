#pragma once

// Forward pass and gradient of the input on tensor cores: see toeplitz_plan.hpp.

#include <cstdint>
#if defined(DCLS_CUDA_ON_HOST)
#include <atomic>
#endif

#include "cuda/conv/toeplitz_tile.cuh"

namespace dcls::cuda {

/// Where a block works: a tile of some channels.
struct ToeplitzForwardPlace : ToeplitzPlace {
  std::int32_t channel, channels;

  __device__ __forceinline__ ToeplitzForwardPlace(const ToeplitzPlan& plan, std::int32_t item)
      : ToeplitzPlace(plan, item / plan.channel_blocks),
        channel(item % plan.channel_blocks * plan.slots) {
    const std::int32_t rest = plan.channels - channel;
    channels = rest < plan.slots ? rest : plan.slots;
  }
};

/// Row m of a slot's products in the tile.
template <typename Storage>
__device__ __forceinline__ const Storage* row_of(const ToeplitzPlan& plan, const Storage* tile,
                                                 int slot, int m) {
  const int row = existing_row(m, plan.planes * plan.rows);
  const Storage* const own = tile + slot * plan.slot_pitch;
  return own + row / plan.rows * plan.plane_pitch + row % plan.rows * plan.pitch;
}

/// A warp's 32 rows of the tile, as the rows of two products: what this lane loads of them. One
/// load has both, of 16 bytes of each row.
template <typename Storage>
struct WarpRows {
  const Storage* row;

  /// From row `first` of the slot on.
  __device__ __forceinline__ WarpRows(const ToeplitzPlan& plan, const Storage* tile, int slot,
                                      int first, int lane)
      : row(row_of(plan, tile, slot, first + lane)) {}
  __device__ __forceinline__ void move(int values) { row += values; }
  /// The columns from `column` on, for each product.
  __device__ __forceinline__ void load(int column, std::uint32_t (&to)[2][2]) const {
    std::uint32_t all[4];
    ldmatrix(all, row + column);
    to[0][0] = all[0], to[0][1] = all[1];
    to[1][0] = all[2], to[1][1] = all[3];
  }
};
/// Of TF32 a load has 16 rows, both halves of their 32 bytes.
template <>
struct WarpRows<float> {
  const float* row[2];

  __device__ __forceinline__ WarpRows(const ToeplitzPlan& plan, const float* tile, int slot,
                                      int first, int lane)
      : row{row_of(plan, tile, slot, first + lane % 16) + lane / 16 * 4,
            row_of(plan, tile, slot, first + 16 + lane % 16) + lane / 16 * 4} {}
  __device__ __forceinline__ void move(int values) { row[0] += values, row[1] += values; }
  __device__ __forceinline__ void load(int column, std::uint32_t (&to)[2][4]) const {
    ldmatrix(to[0], row[0] + column);
    ldmatrix(to[1], row[1] + column);
  }
};

/// Adds the products of `count` kernel rows. `rows` are the tile's rows for the first kernel row,
/// at the first block of columns that a product may read; blocks `begin` to `end` - 1 are in the
/// tile, others are zeros. `lines` are this slot's, from this lane's word on.
template <int kTiles, int kBlocks, typename Storage>
__device__ __forceinline__ void add_products(WarpRows<Storage> rows, int pitch, int count,
                                             int begin, int end, const std::uint32_t* lines,
                                             float (&sum)[2][kTiles][4]) {
  constexpr int kB = 2 / kPerRegister<Storage>, kA = 2 * kB;  // registers of a fragment
  for (int r = 0; r < count; ++r) {
    std::uint32_t matrix[kBlocks][kB];
#pragma unroll
    for (int k = 0; k < kBlocks * kB; ++k) matrix[k / kB][k % kB] = lines[k * 4];
#pragma unroll
    for (int block = 0; block < kTiles + kBlocks - 1; ++block) {
      if (block < begin || block >= end) continue;  // the same in all threads
      std::uint32_t columns[2][kA];
      rows.load(block * kBlock, columns);
#pragma unroll
      for (int k = 0; k < kBlocks; ++k) {
        const int tile = block - k;
        if (tile < 0 || tile >= kTiles) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m) mma<Storage>(sum[m][tile], columns[m], matrix[k]);
      }
    }
    rows.move(pitch);
    lines += line_words(kBlocks);
  }
}

/// A value of the target by a plain loop over the cells that are not zero. In the forward pass
/// padding is zeros that a cell reads, if it reads any input.
template <typename Storage>
__device__ float exact_value(const ToeplitzPlan& plan, const Storage* source, const Storage* cells,
                             int y, int x, float sum) {
  const int pitch = point_pitch(plan);
  for (int r = 0; r < plan.kernel_height; ++r) {
    const int from_y = y - plan.padding + r;
    const bool reads_y = geometry::meets(r - plan.padding, plan.source_height, plan.target_height);
    for (int c = 0; c < plan.kernel_width && sum == sum; ++c) {
      const int shift = c - plan.lead - plan.offset, from_x = x + shift;
      const bool reads = reads_y && geometry::meets(shift, plan.source_width, plan.target_width);
      const int cell = r * plan.kernel_width + c;
      const int last = plan.kernel_height * plan.kernel_width - 1;
      const float weight = numeric::load(cells[plan.mirrored ? last - cell : cell]);
      const bool inside =
          from_y >= 0 && from_y < plan.source_height && from_x >= 0 && from_x < plan.source_width;
      if (weight == 0.0f || !reads || (plan.mirrored && !inside)) continue;
      const std::int64_t point = std::int64_t{from_y} * plan.source_width + from_x;
      sum += weight * (inside ? numeric::load(source[point * pitch]) : 0.0f);
    }
  }
  return sum;
}

#if defined(DCLS_CUDA_ON_HOST)
/// Values computed anew: a fault that leaves NaN in a tile must not hide behind that.
inline std::atomic<int> mended{0};
#endif

/// Computes values of a staged tile anew: all, or those that are NaN, because an infinity met a
/// zero of a Toeplitz matrix. `source` is the tensor at the first channel, as are the others.
template <typename Storage>
__device__ void mend_tile(const ToeplitzPlan& plan, const ToeplitzTile& tile, int channels,
                          bool all, const Storage* source, const Storage* kernel,
                          const Storage* bias, Storage* shared) {
  const std::int64_t points = std::int64_t{plan.source_height} * plan.source_width;
  const int count = channels * tile.planes * tile.rows * tile.columns;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int column = i % tile.columns, rest = i / tile.columns;
    const int row = rest % tile.rows, plane = rest / tile.rows % tile.planes;
    const int slot = rest / tile.rows / tile.planes;
    if (tile.image + plane >= plan.batch || tile.y + row >= tile.height ||
        tile.x + column >= tile.width) {
      continue;
    }
    Storage* const value =
        shared + slot * tile.slot_pitch + plane * tile.plane_pitch + row * tile.pitch + column;
    const float now = numeric::load(*value);
    if (!all && now == now) continue;
#if defined(DCLS_CUDA_ON_HOST)
    ++mended;
#endif
    const Storage* const from =
        source + (tile.image + plane) * plan.channels * points + slot * channel_pitch(plan, points);
    numeric::store(value,
                   exact_value(plan, from, kernel + slot * plan.kernel_height * plan.kernel_width,
                               tile.y + row, tile.x + column,
                               bias != nullptr ? numeric::load(bias[slot]) : 0.0f));
  }
}

/// Each block computes one tile of the target for its channels and writes it once, in a fixed order
/// of additions. `bias` is null or has one value a channel.
template <typename Storage, int kTiles, int kBlocks>
__global__ void __launch_bounds__(kToeplitzThreads, 2)
    toeplitz_forward(const ToeplitzPlan plan, const Storage* source, const Storage* kernel,
                     const Storage* bias, Storage* target) {
  if constexpr (!kTensorCores) return;
  __shared__ unsigned again[kToeplitzWarps];  // of each warp: 1 for a NaN, 2 for a special cell
  Storage* const shared = dynamic_shared<Storage>();
  auto* const lines = reinterpret_cast<std::uint32_t*>(shared + plan.slots * plan.slot_pitch);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int slot = warp / plan.slot_warps;
  const int first_row = warp % plan.slot_warps * kWarpRows;
  const WarpRows<Storage> own_rows(plan, shared, slot, first_row, lane);
  Storage* const own = shared + slot * plan.slot_pitch;
  const std::uint32_t* const own_lines =
      lines + slot * plan.kernel_rows * line_words(kBlocks) + lane_word<Storage, kBlocks>(lane);

  for (auto item = static_cast<std::int32_t>(blockIdx.x); item < toeplitz_blocks(plan);
       item += static_cast<std::int32_t>(gridDim.x)) {
    const ToeplitzForwardPlace place(plan, item);
    const int begin = first_block(plan, place.x), end = end_block(plan, place.x);
    const Storage* const from_source =
        source +
        place.channel * channel_pitch(plan, std::int64_t{plan.source_height} * plan.source_width);
    clear_shared(shared, plan.slots * plan.slot_pitch * static_cast<int>(sizeof(Storage)));
    __syncthreads();
    load_tile(plan, source_tile(plan, place, begin, end), from_source, place.channels, shared);
    const bool active = slot < place.channels;
    const Storage* const cells =
        kernel + static_cast<std::int64_t>(place.channel) * plan.kernel_height * plan.kernel_width;
    float sum[2][kTiles][4];
    const float start =
        bias != nullptr && active ? numeric::load(bias[place.channel + slot]) : 0.0f;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][tile][i] = start;
      }
    }
    bool special = false;
    for (int chunk = 0; chunk < plan.chunks; ++chunk) {
      for (int r = 0; r < plan.kernel_height; r += plan.kernel_rows) {
        const int left = plan.kernel_height - r;
        const int rows = left < plan.kernel_rows ? left : plan.kernel_rows;
        if (chunk + r > 0) __syncthreads();  // the last lines have been read
        special =
            build_lines<kBlocks>(plan, cells, place.channels, r, rows, chunk * kBlocks, lines) ||
            special;
        if (chunk + r == 0) {
          copy_async_wait<0>();
          round_operands(shared, plan.slots * plan.slot_pitch);
        }
        __syncthreads();
        if (!active) continue;
        const int block = chunk * kBlocks;
        WarpRows<Storage> from = own_rows;
        from.move(r * plan.pitch);
        from.move((block - begin) * kBlock);
        add_products<kTiles, kBlocks>(from, plan.pitch, rows, begin - block, end - block, own_lines,
                                      sum);
      }
    }
    bool is_nan = false;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) is_nan = is_nan || sum[m][tile][i] != sum[m][tile][i];
      }
    }
    const bool any_nan = __any_sync(kFullWarp, active && is_nan ? 1 : 0) != 0;
    const bool any_special = __any_sync(kFullWarp, special ? 1 : 0) != 0;
    if (lane == 0) again[warp] = (any_nan ? 1u : 0u) | (any_special ? 2u : 0u);

    // Through shared memory, so that lanes write along the tensor's innermost axis.
    __syncthreads();  // the tile has been read
    if (active) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int at = first_row + 16 * m + 8 * half + lane / 4;
            store_pair(own + at * plan.target_pitch + tile * kBlock + lane % 4 * 2,
                       sum[m][tile][2 * half], sum[m][tile][2 * half + 1]);
          }
        }
      }
    }
    __syncthreads();
    const ToeplitzTile staged = target_tile(plan, place, plan.slot_pitch);
    unsigned mend = 0;
    for (int w = 0; w < plan.slots * plan.slot_warps; ++w) mend |= again[w];
    if (mend != 0) {  // the same in all threads
      mend_tile(plan, staged, place.channels, (mend & 2u) != 0, from_source, cells,
                bias == nullptr ? nullptr : bias + place.channel, shared);
      __syncthreads();
    }
    store_tile(plan, staged, shared, place.channels,
               target + place.channel * channel_pitch(plan, std::int64_t{plan.target_height} *
                                                                plan.target_width));
    __syncthreads();  // before the next item's tile
  }
}

}  // namespace dcls::cuda
