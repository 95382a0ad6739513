#pragma once

// How a depthwise convolution is cut into the products of the tensor cores. Everything follows from
// the shapes, the dtype and the alignment of the tensors.
//
// For one channel and kernel row r, a row of 8 outputs from column x on is a row of the source,
// from column x - lead on, times the Toeplitz matrix T_r[j][n] = kernel[r][j - n + offset], with
// offset = padding - lead in (-8, 0]. The rows of a product are 16 rows (image, y) of a block's
// tile; all column tiles of a row share T_r.
//
// The gradient of the input is the same with the kernel mirrored. The gradient of the kernel is the
// sum of the products' adjoints: dT_r[j][n] = sum source[y + r][x - lead + j] * grad_output[y][x +
// n], and a cell of the kernel is the sum of a diagonal of dT_r.

#include <cstddef>
#include <cstdint>

#include "core/conv_geometry.hpp"
#include "dcls/conv.hpp"

namespace dcls::cuda {

/// One block of columns: those of a product of the target, and its depth.
inline constexpr int kBlock = 8;
/// Bytes that ldmatrix loads of a row.
inline constexpr int kLoadBytes = 16;
/// Rows of a warp: two products of 16.
inline constexpr int kWarpRows = 32;
inline constexpr int kToeplitzWarps = 8;
inline constexpr int kToeplitzThreads = 32 * kToeplitzWarps;
/// Channels of a block in channels_last, of values of so many bytes: 16 bytes of a pixel.
DCLS_HD constexpr int toeplitz_slots(int bytes) { return kLoadBytes / bytes; }

/// Words of a kernel row in shared memory. A register of T_r holds two cells of 16 bits, c and c +
/// 1, and each lane, column block and row of T_r has its own c. So a line is the row with zeros
/// around it, twice: as pairs from an even place on, and as pairs from an odd one. A register holds
/// one cell of TF32: there the line is the row once.
DCLS_HD constexpr int line_words(int column_blocks) { return 2 * (column_blocks + 1) * kBlock / 2; }

/// How the tensors of a problem are cut into tiles.
struct ToeplitzTiles {
  std::int32_t batch, channels;
  std::int32_t source_height, source_width, target_height, target_width;
  std::int32_t kernel_height, kernel_width;
  std::int32_t padding;  ///< rows of zeros above the source
  bool mirrored;         ///< the kernel, for the gradient of the input
  bool channels_last;
  // For the host. Here, in the gap behind the flags, they move no field that kernels read.
  std::uint8_t bytes;  ///< of a value
  std::uint8_t unit;   ///< values; rows of the source are an odd number of units apart

  // Columns.
  std::int32_t lead, offset;   ///< see above
  std::int32_t column_tiles;   ///< of 8 target columns, of a block
  std::int32_t column_blocks;  ///< blocks of 8 source columns that a column tile reads at once,
  std::int32_t chunks;         ///< and how often: the kernel is cut into as many parts
  // Rows.
  std::int32_t planes, rows;        ///< images of a block, and target rows of each
  std::int32_t plane_rows, shared;  ///< rows of a plane in the tile; those that the next one shares
  // Tiles of the target.
  std::int32_t tiles_n, tiles_y, tiles_x;
  // Shared memory, in values.
  std::int32_t pitch, plane_pitch, slot_pitch, target_pitch;
  std::int32_t copy, store;  ///< values that are copied at once
};

/// Of the forward pass and of the gradient of the input.
struct ToeplitzPlan : ToeplitzTiles {
  std::int32_t slots, slot_warps;  ///< channels of a block, and warps of each
  std::int32_t channel_blocks;
  std::int32_t kernel_rows;  ///< whose lines are in shared memory at once

  int threads() const { return 32 * slots * slot_warps; }  ///< host
};

/// Kernel rows of a warp in the gradient of the kernel: their sums fit into registers.
inline constexpr int kGradientRows = 3;
/// Rows of a tile there, at most.
inline constexpr int kGradientTileRows = 128;
/// Rows of the tile that a product of values of so many bytes adds up there.
DCLS_HD constexpr int gradient_depth(int bytes) { return 32 / bytes; }

/// Of the gradient of the kernel: `source` is the input, `target` the gradient of the output, both
/// in channels_first. A block has one channel. A unit is kGradientRows kernel rows and one chunk of
/// columns, and is one warp's.
struct ToeplitzKernelPlan : ToeplitzTiles {
  std::int32_t units;        ///< of a channel
  std::int32_t block_units;  ///< of them in a block: whole rows, that is all their chunks
  std::int32_t unit_blocks;
  std::int32_t target_slot;  ///< values in shared memory
  std::int32_t splits;       ///< of the tiles

  int threads() const { return 32 * block_units; }  ///< host
};

/// Row m of a product, or one that is read in its place if there are only `rows`: 8 n rows above
/// it, so that the rows that are loaded together still lie in different banks.
DCLS_HD int existing_row(int m, int rows) {
  return m < rows ? m : rows < kBlock ? 0 : rows - kBlock + (m - rows) % kBlock;
}

/// The sums of a kernel row in shared memory, of the gradient of the kernel: from a block of
/// columns to the next, and of all. Cells that are next to each other, along columns and then rows,
/// are summed together: so their sums lie in banks one after the other.
inline constexpr int kSumsPitch = 16 * kBlock + kBlock;
DCLS_HD int row_sums(const ToeplitzKernelPlan& plan) {
  constexpr int kBanks = 32;
  const int all = (plan.column_blocks + 1) * kSumsPitch;
  return all + (plan.kernel_width + kBanks - all % kBanks) % kBanks;
}

/// Fewer than 2^30: see toeplitz_covers().
DCLS_HD std::int32_t toeplitz_blocks(const ToeplitzPlan& plan) {
  return plan.channel_blocks * plan.tiles_n * plan.tiles_y * plan.tiles_x;
}

DCLS_HD std::int32_t toeplitz_blocks(const ToeplitzKernelPlan& plan) {
  return plan.channels * plan.unit_blocks * plan.splits;
}

/// From a channel of a tensor to the next, and from a point to the next, in values.
DCLS_HD std::int64_t channel_pitch(const ToeplitzPlan& plan, std::int64_t points) {
  return plan.channels_last ? 1 : points;
}
DCLS_HD std::int32_t point_pitch(const ToeplitzPlan& plan) {
  return plan.channels_last ? plan.channels : 1;
}

/// Blocks of source columns, counted from column first - lead on, that the column tiles from
/// `first` on read; of them, the first that has a column of the source, and the end of those.
DCLS_HD int all_blocks(const ToeplitzTiles& plan) {
  return plan.column_tiles - 1 + plan.column_blocks * plan.chunks;
}
DCLS_HD int first_block(const ToeplitzTiles& plan, int first) {
  const int all = all_blocks(plan);
  const int columns = plan.lead - first;  // left of the source
  return columns <= 0 ? 0 : columns / kBlock < all ? columns / kBlock : all;
}
DCLS_HD int end_block(const ToeplitzTiles& plan, int first) {
  const int all = all_blocks(plan);
  const int columns = plan.lead - first + plan.source_width;
  if (columns <= 0) return 0;
  return (columns + kBlock - 1) / kBlock < all ? (columns + kBlock - 1) / kBlock : all;
}

}  // namespace dcls::cuda
