#pragma once

// The direct convolution on the CPU: what its planner hands to the kernels of an instruction set.
//
// All three passes are sums over kernel cells of shifted planes (core/conv_geometry.hpp): the
// forward pass and backward_input write a destination plane from source planes, backward_kernel
// sums a gradient plane times shifted source planes into one number per cell. A tensor of one or
// two spatial axes has leading axes of size 1 here.

#include <cstdint>

#include "cpu/conv/fast_fir.hpp"
#include "dcls/conv.hpp"

namespace dcls::cpu {

/// Longest run of neighbouring cells that is handled at once.
inline constexpr int kMaxRun = 4;

/// Bytes to which the rows of the scratch planes are padded: the longest vector.
inline constexpr std::int64_t kRowBytes = 64;
/// Its values, at most.
inline constexpr std::int64_t kMostLanes = 16;

/// kLength cells of a kernel column that read neighbouring rows: the j-th reads the row y + j of
/// the source, counted from `offset` in the scratch planes.
template <typename T, int kLength>
struct WeightRun {
  std::int64_t offset;
  T weight[kLength];
};

/// The same for backward_kernel: `cell` is the index in grad_kernel of the first one.
struct CellRun {
  std::int64_t offset;
  std::int64_t cell;
};

/// The runs of all lists, by length: list l has runs[n - 1][begin[n - 1][l] ... begin[n - 1][l +
/// 1]) of length n, of type WeightRun<T, n> or CellRun.
struct RunLists {
  const void* runs[kMaxRun];
  const std::int64_t* begin[kMaxRun];
};

/// One tensor of a pass. Along axis d it is split into phases[d] planes: see conv_geometry.hpp.
/// Only those that some cell reads or writes are used: a stride may be far larger than the kernel.
struct Side {
  std::int64_t channels;  ///< of one group
  std::int64_t size[kMaxDims];
  std::int64_t phases[kMaxDims];
  std::int64_t used[kMaxDims];          ///< how many of the phases
  const std::int64_t* phase[kMaxDims];  ///< and which, in rising order
  std::int64_t step[kMaxDims];          ///< values from one point to the next
  std::int64_t channel_step;
  std::int64_t batch_step;

  std::int64_t phase_count() const { return used[0] * used[1] * used[2]; }
};

struct ConvPlan {
  DType dtype;
  Side source;
  Side dest;  ///< what a pass writes; the output's gradient in backward_kernel
  std::int64_t batch;
  std::int64_t groups;

  std::int64_t shift_lo[kMaxDims];  ///< least shift of a cell that reads anything
  std::int64_t halo[kMaxDims];      ///< greatest such shift minus the least

  // A tile is a box of points of a destination plane. A thread holds the source points that a tile
  // reads, zero outside the tensor, and the tile itself in scratch planes.
  std::int64_t tile[kMaxDims];
  std::int64_t tiles[kMaxDims];
  std::int64_t source_extent[kMaxDims];  ///< tile + halo
  std::int64_t source_pitch;             ///< values of a row
  std::int64_t source_plane;             ///< values of a plane
  std::int64_t dest_pitch;
  std::int64_t
      dest_margin;  ///< rows of zeros before and after those of a tile, for backward_kernel
  std::int64_t dest_plane;

  // Whether the fast FIR algorithm (fast_fir.hpp) takes the place of the cells one by one, along
  // the rows. Then a plane of a class has a row for each block of rows of a tile.
  bool fast;
  std::int64_t class_plane;
  fast_fir::Cells fast_cells;
  const std::uint8_t* support;  ///< of the kernel, for backward_kernel; may be null

  // A unit of work has dest_block destination channels of group_block groups, and goes through
  // their source channels in blocks of source_block.
  std::int64_t group_block;
  std::int64_t source_block;
  std::int64_t dest_block;
  std::int64_t splits;      ///< parts of the tiles of all images, for backward_kernel
  std::int64_t unit_cells;  ///< most cells of a unit, in whole vectors, for backward_kernel
  std::int64_t cell_step;   ///< from a cell of a CellRun to the next one

  /// List of (destination channel, destination phase or class, source block), the last fastest.
  RunLists lists;

  static std::int64_t blocks(std::int64_t count, std::int64_t block) {
    return count > block ? (count - 1) / block + 1 : 1;
  }
  std::int64_t source_blocks() const { return blocks(source.channels, source_block); }
  std::int64_t dest_blocks() const { return blocks(dest.channels, dest_block); }
  std::int64_t group_blocks() const { return blocks(groups, group_block); }
  /// Values of the planes of differences.
  std::int64_t difference_values() const { return (fast_fir::kBlock - 1) * source_plane; }
  /// Values of these and of the planes of all classes, which follow them.
  std::int64_t fast_values() const {
    return fast ? difference_values() + fast_fir::kClasses * class_plane : 0;
  }
  std::int64_t tile_count() const { return tiles[0] * tiles[1] * tiles[2]; }
  /// Where there are classes, there is one phase.
  std::int64_t lists_of_pair() const {
    return dest.phase_count() * (fast ? fast_fir::kClasses : 1);
  }
  std::int64_t list_index(std::int64_t dest_channel, std::int64_t phase,
                          std::int64_t source_blk) const {
    return (dest_channel * lists_of_pair() + phase) * source_blocks() + source_blk;
  }
};

/// The passes in their order of units, for the dtype of a plan. They return whether they could: the
/// fast FIR algorithm cannot with values beyond fast_fir::kMost.
struct ConvPasses {
  /// The units [begin, end) of the forward pass or of backward_input. A unit is (tile, image, group
  /// block, destination block), the last fastest. `scratch` is for this thread alone, aligned
  /// to 64.
  bool (*forward)(const ConvPlan& plan, const void* source, const void* bias, void* dest,
                  std::int64_t begin, std::int64_t end, void* scratch);
  /// The units [begin, end) of backward_kernel. A unit is (group block, destination block, source
  /// block, split), the last fastest. Writes its cells' sums to `grad_kernel`, or, if it is not
  /// null, to the compute type's `partial` of (splits, `cells` of the kernel).
  bool (*backward_kernel)(const ConvPlan& plan, const void* source, const void* dest,
                          void* grad_kernel, void* partial, std::int64_t cells, std::int64_t begin,
                          std::int64_t end, void* scratch);
};

struct ConvKernels {
  ConvPasses passes;
  /// grad_kernel[i] = the sum of partial[0 ... splits)[i], for the cells [begin, end).
  void (*reduce)(const ConvPlan& plan, const void* partial, void* grad_kernel, std::int64_t cells,
                 std::int64_t begin, std::int64_t end);
  /// The sums of `grad_output` over batch and points, of the channels [begin, end).
  void (*backward_bias)(const ConvArgs& args, const void* grad_output, void* grad_bias,
                        std::int64_t begin, std::int64_t end);
  /// Sets bits[c / 64] for the cells c of [begin, end), `begin` a multiple of 64: a bit is 1 if the
  /// kernel's cell is not zero. All cells that share a word are in one range.
  void (*mark_weights)(DType dtype, const void* kernel, std::int64_t begin, std::int64_t end,
                       std::uint64_t* bits);
  /// The same for the bytes of a support.
  void (*mark_support)(const void* support, std::int64_t begin, std::int64_t end,
                       std::uint64_t* bits);
  /// Rows of a tile from which on the fast FIR algorithm has sums enough for the registers.
  std::int64_t fast_rows;
  /// Of the vectors of this instruction set.
  std::int64_t vector_bytes;
};

namespace baseline {
extern const ConvKernels conv_kernels;
}
namespace avx2 {
extern const ConvKernels conv_kernels;
}
namespace avx512_256 {
extern const ConvKernels conv_kernels;
}
namespace avx512 {
extern const ConvKernels conv_kernels;
}
namespace avx512bf16_256 {
/// Of bfloat16 tensors whose tiles have rows, see conv_pairs.hpp.
extern const ConvPasses conv_pair_passes;
}  // namespace avx512bf16_256
namespace avx512bf16 {
extern const ConvPasses conv_pair_passes;
}  // namespace avx512bf16

}  // namespace dcls::cpu
