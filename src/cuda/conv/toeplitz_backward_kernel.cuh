#pragma once

// Gradient of the kernel on tensor cores: see toeplitz_plan.hpp. The rows of the tile are the depth
// of the products, 16 columns of the gradient of the output their rows, and 8 columns of the input
// their columns. So both are read transposed.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/conv/conv_tile_plan.hpp"
#include "cuda/conv/toeplitz_tile.cuh"

namespace dcls::cuda {

/// Where a block works: a range of tiles, and units of its channel.
struct ToeplitzKernelPlace {
  std::int32_t channel, unit, split;
  std::int32_t tile, end;

  __device__ __forceinline__ ToeplitzKernelPlace(const ToeplitzKernelPlan& plan,
                                                 std::int32_t item) {
    channel = item % plan.channels;
    item /= plan.channels;
    unit = item % plan.unit_blocks * plan.block_units;
    split = item / plan.unit_blocks;
    const std::int32_t tiles = plan.tiles_n * plan.tiles_y * plan.tiles_x;
    const std::int32_t share = tiles / plan.splits;
    const std::int32_t longer = tiles % plan.splits;  // as many splits have one more
    tile = share * split + (split < longer ? split : longer);
    end = tile + share + (split < longer ? 1 : 0);
  }
};

/// What a lane loads of the gradient of the output, whose first row is at `target`: columns of one
/// step's rows, as rows of a product. ldmatrix transposes values of 16 bits.
template <typename Storage>
struct GradientRows {
  const Storage *quad, *pair;

  __device__ __forceinline__ GradientRows(const Storage* target, int pitch, int lane)
      // Four matrices: the two of 16 columns, for rows 0 to 7, then for rows 8 to 15.
      : quad(target + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * kBlock),
        pair(target + lane % 16 * pitch) {}  // two, of the last 8 columns

  /// Two blocks of columns from `column` on, or one. The step begins at `at`.
  __device__ __forceinline__ void load(int at, int column, std::uint32_t (&to)[4]) const {
    ldmatrix_transposed(to, quad + at + column);
  }
  __device__ __forceinline__ void load(int at, int column, std::uint32_t (&to)[2]) const {
    ldmatrix_transposed(to, pair + at + column);
  }
  /// Adds the columns to `totals`: each of the 8 columns of the products has the totals.
  static __device__ __forceinline__ void add(std::uint32_t (&rows)[4], float (&totals)[4]) {
    constexpr std::uint32_t kOne = std::is_same_v<Storage, Half> ? 0x3c003c00u : 0x3f803f80u;
    constexpr std::uint32_t kOnes[2] = {kOne, kOne};
    mma<Storage>(totals, rows, kOnes);
  }
  /// So many lanes have the same totals.
  static constexpr int kOwners = 4;
};
/// Values of 32 bits are read one by one. Registers are few here.
template <>
struct GradientRows<float> {
  const float* target;
  int pitch;

  __device__ __forceinline__ GradientRows(const float* target_, int pitch_, int)
      : target(target_), pitch(pitch_) {}

  template <int kCount>
  __device__ __forceinline__ void load(int at, int column, std::uint32_t (&to)[kCount]) const {
    constexpr int kOfRow = kCount / 2;
    const int lane = fresh_lane();
    const float* const from = target + at + column + lane % 4 * pitch + lane / 4;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      to[i] = numeric::bit_cast<std::uint32_t>(from[i / kOfRow * 4 * pitch + i % kOfRow * kBlock]);
    }
  }
  /// Rounds what it has added.
  static __device__ __forceinline__ void add(std::uint32_t (&rows)[4], float (&totals)[4]) {
#pragma unroll
    for (std::uint32_t& bits : rows) {
      const auto value = numeric::bit_cast<float>(bits);
      totals[0] += value;
      bits = to_tf32(value);
    }
  }
  static constexpr int kOwners = 1;
};
__device__ __forceinline__ bool is_finite(float value) { return value - value == 0.0f; }

/// What a lane loads of the rows of the source that a step meets, which are `places`, from `at`
/// on, behind `source`: one block of columns as a product's second factor.
template <typename Storage>
struct SourceRows {
  const Storage* row;

  __device__ __forceinline__ SourceRows(const Storage* source, const std::int32_t* places, int at,
                                        int lane)
      : row(source + places[at + lane % 16]) {}  // of both matrices of a block
  __device__ __forceinline__ void move(int values) { row += values; }
  __device__ __forceinline__ void load(int column, std::uint32_t (&to)[2]) const {
    ldmatrix_transposed(to, row + column);
  }
};
template <>
struct SourceRows<float> {
  const float* own;
  int first, second;

  __device__ __forceinline__ SourceRows(const float* source, const std::int32_t* places, int at,
                                        int lane)
      : own(source + lane / 4), first(places[at + lane % 4]), second(places[at + lane % 4 + 4]) {}
  __device__ __forceinline__ void move(int values) { first += values, second += values; }
  __device__ __forceinline__ void load(int column, std::uint32_t (&to)[2]) const {
    to[0] = numeric::bit_cast<std::uint32_t>(own[first + column]);
    to[1] = numeric::bit_cast<std::uint32_t>(own[second + column]);
  }
};

/// Adds the products of one tile: sum[r][d] is that of kernel row r of the unit, of 16 columns of
/// the target from 16 p on and the 8 columns of the source in block 2 p + d, for all p. `rows` are
/// those of the unit. `totals` becomes the sum of each column of the target. `places` are those
/// of the tile's rows in `source`, which is the tile at the unit's first kernel row and column
/// block; blocks `begin` to `end` - 1 are in it.
template <int kTiles, int kBlocks, typename Storage>
__device__ __forceinline__ void add_gradients(const Storage* source, const std::int32_t* places,
                                              int pitch, const Storage* target, int target_pitch,
                                              int steps, int rows, int begin, int end,
                                              float (&sum)[kGradientRows][kBlocks + 1][4],
                                              float (&totals)[4]) {
  constexpr int kPairs = (kTiles + 1) / 2, kDepth = gradient_depth(sizeof(Storage));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const GradientRows<Storage> gradients(target, target_pitch, lane);
  for (int step = 0; step < steps; ++step) {
    const int first = step * kDepth * target_pitch;
    std::uint32_t gradient[kPairs][4];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (2 * p + 1 < kTiles) {
        gradients.load(first, 2 * p * kBlock, gradient[p]);
      } else {
        std::uint32_t half[2];
        gradients.load(first, 2 * p * kBlock, half);
        gradient[p][0] = half[0], gradient[p][2] = half[1];
        gradient[p][1] = gradient[p][3] = 0;
      }
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) gradients.add(gradient[p], totals);
    SourceRows<Storage> from(source, places, step * kDepth, lane);
#pragma unroll
    for (int r = 0; r < kGradientRows; ++r) {
      if (r < rows) {  // the same in all lanes
#pragma unroll
        for (int block = 0; block < kTiles + kBlocks - 1; ++block) {
          if (block < begin || block >= end) continue;
          std::uint32_t columns[2];
          from.load(block * kBlock, columns);
#pragma unroll
          for (int p = 0; p < kPairs; ++p) {
            const int d = block - 2 * p;
            if (d < 0 || d > kBlocks) continue;
            mma<Storage>(sum[r][d], gradient[p], columns);
          }
        }
      }
      from.move(pitch);
    }
  }
}

/// Column c of the kernel: a diagonal of the sums, those of the row's first chunk and its next ones
/// `chunk_pitch` apart, in a fixed order. Blocks that have no sums have no column of the source.
template <int kBlocks>
__device__ __forceinline__ float sum_diagonal(const float* sums, int chunks, int chunk_pitch,
                                              int column) {
  float sum = 0.0f;
  for (int n = 0; n < 16; ++n) {
    const int upper = n / kBlock;
    const int from = column + n;  // column of the source, from the first of block 0 on
    const int block = from / kBlock - upper;
    if (from < 0 || block < 0 || block >= chunks * kBlocks) continue;
    const int d = block % kBlocks + upper;
    sum += sums[block / kBlocks * chunk_pitch + d * kSumsPitch + n * kBlock + from % kBlock];
  }
  return sum;
}

/// Each block writes partial[split][channel][cell] for the cells of its units, and one of those of
/// a channel bias[split][channel], the sum of the target. Either may be null. The tensors are in
/// channels_first.
template <typename Storage, int kTiles, int kBlocks>
__global__ void __launch_bounds__(kToeplitzThreads, 2)
    toeplitz_kernel_partial(const ToeplitzKernelPlan plan, const Storage* source,
                            const Storage* target, float* partial, float* bias) {
  if constexpr (!kTensorCores) return;
  __shared__ std::int32_t places[kGradientTileRows];
  __shared__ std::int32_t last_tile;  // no register is left for it over the tiles
  Storage* const shared = dynamic_shared<Storage>();
  auto* const sums = reinterpret_cast<float*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int rows = plan.planes * plan.rows;
  constexpr int kDepth = gradient_depth(sizeof(Storage));
  const int steps = (rows + kDepth - 1) / kDepth;
  for (int m = static_cast<int>(threadIdx.x); m < kDepth * steps;
       m += static_cast<int>(blockDim.x)) {
    const int at = existing_row(m, rows);  // those behind the last one meet zeros of the target
    places[m] = at / plan.rows * plan.plane_pitch + at % plan.rows * plan.pitch;
  }
  Storage* const targets = shared + plan.slot_pitch;

  for (auto item = static_cast<std::int32_t>(blockIdx.x); item < toeplitz_blocks(plan);
       item += static_cast<std::int32_t>(gridDim.x)) {
    const ToeplitzKernelPlace place(plan, item);
    const int unit = place.unit + warp;
    const int first_row = unit / plan.chunks * kGradientRows;
    const int first_block_of_unit = unit % plan.chunks * kBlocks;
    const int left = plan.kernel_height - first_row;
    const bool active = unit < plan.units;
    const Storage* const from_source =
        source + std::int64_t{place.channel} * plan.source_height * plan.source_width;
    const Storage* const from_target =
        target + std::int64_t{place.channel} * plan.target_height * plan.target_width;
    float sum[kGradientRows][kBlocks + 1][4] = {};
    float totals[4] = {};
    if (threadIdx.x == 0) last_tile = place.end - 1;
    std::int32_t tile = place.tile;
    bool first = true;
    do {
      const ToeplitzPlace at(plan, tile);
      const int begin = first_block(plan, at.x), end = end_block(plan, at.x);
      __syncthreads();  // the last tile, or the last sums, have been read
      // Whole planes overwrite the planes of the last tile: the zeros around them stay.
      const bool whole = plan.tiles_y * plan.tiles_x == 1 && at.image + plan.planes <= plan.batch;
      if (first || !whole) {
        clear_shared(shared,
                     (plan.slot_pitch + plan.target_slot) * static_cast<int>(sizeof(Storage)));
        __syncthreads();
      }
      first = false;
      load_rows(plan, source_tile(plan, at, begin, end), from_source, shared);
      load_rows(plan, target_tile(plan, at, plan.target_slot), from_target, targets);
      copy_async_commit();
      copy_async_wait<0>();
      round_operands(shared, plan.slot_pitch);
      __syncthreads();
      if (!active) continue;
      add_gradients<kTiles, kBlocks>(
          shared + first_row * plan.pitch + (first_block_of_unit - begin) * kBlock, places,
          plan.pitch, targets, plan.target_pitch, steps, left, begin - first_block_of_unit,
          end - first_block_of_unit, sum, totals);
    } while (tile++ < last_tile);
    __syncthreads();  // the last tile has been read
    if (active) {
      // Blocks that are left out hold zeros, which an infinite gradient makes NaN: then
      // conv_kernel_finish, or layer_finish, computes the cells anew.
      const bool finite = is_finite(totals[0]) && is_finite(totals[2]);
      const float all = __all_sync(kFullWarp, finite ? 1 : 0) != 0 ? 0.0f : NAN;
      const bool owner = lane % GradientRows<Storage>::kOwners == 0;
      const float total = group_sum<kWarp>(owner ? totals[0] + totals[2] : 0.0f);
      if (bias != nullptr && unit == 0 && lane == 0) {
        bias[std::int64_t{place.split} * plan.channels + place.channel] = total;
      }
      // Of 16 bits a register is free over the tiles if this is computed behind them; of TF32 not.
      const int own = sizeof(Storage) == 4 ? lane : fresh_lane();
#pragma unroll
      for (int r = 0; r < kGradientRows; ++r) {
#pragma unroll
        for (int d = 0; d <= kBlocks; ++d) {
          float* const to = sums + (warp * kGradientRows + r) * row_sums(plan) + d * kSumsPitch;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            to[(own / 4 + i / 2 * 8) * kBlock + own % 4 * 2 + i % 2] = sum[r][d][i] + all;
          }
        }
      }
    }
    __syncthreads();
    if (partial == nullptr) continue;
    const int row_begin = place.unit / plan.chunks * kGradientRows;
    const int most = plan.block_units / plan.chunks * kGradientRows;
    const int below = plan.kernel_height - row_begin;
    const int block_rows = below < most ? below : most;
    const std::int64_t kernel = std::int64_t{place.split} * plan.channels + place.channel;
    for (int i = static_cast<int>(threadIdx.x); i < block_rows * plan.kernel_width;
         i += static_cast<int>(blockDim.x)) {
      const int row = i / plan.kernel_width, column = i % plan.kernel_width;
      const int owner = row / kGradientRows * plan.chunks;
      partial[(kernel * plan.kernel_height + row_begin + row) * plan.kernel_width + column] =
          sum_diagonal<kBlocks>(
              sums + (owner * kGradientRows + row % kGradientRows) * row_sums(plan), plan.chunks,
              kGradientRows * row_sums(plan), column - plan.offset);
    }
  }
}

}  // namespace dcls::cuda
