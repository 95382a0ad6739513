#pragma once

// How the CUDA kernels of the direct convolution cut a problem. Everything here follows from the
// shapes alone, never from the device, so that results are the same on every GPU.
//
// Forward pass and gradient of the input are one kernel, sums of shifted planes with unit steps
// (see conv_geometry.hpp). Spatial axes are called z, y and x; those that a problem does not have
// are in front and have length 1, but for one axis, which is y: a line. The source is what a pass
// reads (the input, or the gradient of the output), the target what it writes. For the gradient of
// the kernel, the target is the gradient of the output.
//
// A stage is what a block needs of the source at a time: one kernel index on z, and on y and x one
// class of cells (those that read one phase of the source), or a chunk of it where the class is so
// long that the halo would not fit into shared memory.

#include <cstddef>
#include <cstdint>

#include "core/conv_geometry.hpp"
#include "core/macros.hpp"
#include "dcls/conv.hpp"

namespace dcls::cuda {

/// Rows and columns of the targets of one thread. A unit of 2 x 2 cells then loads 64 values for
/// 196 multiply-adds. Odd, so that lanes which own neighbouring patches read different banks of
/// shared memory; 7 divides the sizes 56, 28, 14 and 7 of common networks.
template <bool kLine>
struct Patch {
  static constexpr int kRows = kLine ? 21 : 7;
  static constexpr int kColumns = kLine ? 1 : 7;
};

/// Threads of a block, at most.
inline constexpr int kConvThreads = 128;
/// Blocks of a multiprocessor that registers must leave room for: 96 registers, which is enough for
/// float32.
template <typename T>
inline constexpr int kConvBlocks = sizeof(T) == 4 ? 4 : 1;
inline constexpr int kWarp = 32;
/// Every GPU gives a block 48 KiB of shared memory without being asked: so much is for the kernels'
/// own variables, the rest for what a plan asks for.
inline constexpr std::size_t kConvStatic = 2048;
inline constexpr std::size_t kConvShared = 48 * 1024 - kConvStatic;
/// Of it, what the sums of the kernel's gradient may take.
inline constexpr std::size_t kSumsShared = 16 * 1024;
/// Units that a warp has in shared memory at a time, and values of their cells.
inline constexpr int kListUnits = 16;
inline constexpr int kListCells = kListUnits * 8;
/// What a block of few lanes may take of shared memory, to have more of them.
inline constexpr std::size_t kSmallTiles = 24 * 1024;
/// Planes of a block; their places are in static shared memory.
inline constexpr int kMostPlanes = 64;
/// Blocks that the gradient of the kernel is cut into, if the batch allows.
inline constexpr std::int64_t kKernelBlocks = 2048;

/// Addresses of a tensor, in elements.
struct ConvTensor {
  std::int64_t batch, channel;
  std::int64_t axis[3];
};

/// One spatial axis of a pass.
struct ConvAxis {
  std::int64_t source_size, target_size;
  std::int64_t source_step, target_step;  ///< the stride on the side that has phases, else 1
  std::int64_t kernel_size, stride, padding, dilation;
  std::int64_t class_step;  ///< cells r and r + class_step read one phase,
  std::int64_t shift_step;  ///< so far apart
  std::int64_t classes;
  std::int64_t inverse;  ///< of shift_step, modulo class_step
  int chunk;             ///< cells of a stage, at most
  std::int64_t chunks;
};

/// Cells of one stage on one axis, in the order of growing shift: cell first + t * step reads the
/// source at j + shift + t * shift_step for the target j, counted in their phases.
struct StageAxis {
  std::int64_t first, step, shift;
  std::int64_t source_phase, target_phase;
  std::int64_t source_length, target_length;  ///< points of these phases
  int count;
};

struct ConvPlan {
  ConvAxis axis[3];
  ConvTensor source, target;
  std::int64_t batch;
  std::int64_t target_channels, source_per_group, target_per_group;
  std::int64_t kernel_rows, cells;  ///< cells of a row
  // The lists of a pass stand in the order of its target channels, and of each channel's sources.
  std::int64_t first_list_row, list_rows;  ///< those of this launch
  bool mirrored;                           ///< the gradient of the input
  bool channels_last;
  // What a block computes: `slots` target channels of `planes` planes (batch times z) of
  // strips * patches patches.
  int slots, slot_threads;
  int source_slots;  ///< source channels of a stage: 1, or one for each slot
  int planes, strips, patches;
  // A tile in shared memory. What patches read of it may lie in the next row or plane, if both have
  // zeros there.
  int tile_rows, tile_columns;               ///< that patches read
  int pitch, plane_size;                     ///< from a row to the next, from a plane to the next
  int slot_size;                             ///< values of a slot
  std::int64_t block_group;                  ///< channels among which blocks are dealt out,
  std::int64_t group_blocks;                 ///< and how many blocks that makes
  std::int64_t first_block, channel_blocks;  ///< of this launch; there are group_blocks a group
  std::int64_t tiles_y, tiles_x, plane_blocks;
  std::int64_t tiles;   ///< their product
  std::int64_t phases;  ///< of the target
  std::int64_t stages;
  std::int64_t stage_cells;  ///< cells of a stage, at most
  std::int64_t splits;       ///< of the tiles, for the kernel's gradient

  int threads() const { return slots * slot_threads; }
};

/// Bytes of a tile of values of `size` bytes, a multiple of 16.
DCLS_HD int tile_bytes(const ConvPlan& plan, int size) {
  return (plan.source_slots * plan.slot_size * size + 15) / 16 * 16;
}
/// Bytes that each warp has for its list.
DCLS_HD int list_bytes(int size) {
  return kListUnits * static_cast<int>(2 * sizeof(std::int32_t)) + kListCells * size;
}

/// The first point of a slot's patch in a tile. Patches across vary fastest, planes slowest.
template <bool kLine>
DCLS_HD int patch_origin(const ConvPlan& plan, int patch) {
  const int across = patch % plan.patches;
  const int strip = patch / plan.patches % plan.strips;
  const int plane = patch / (plan.patches * plan.strips);
  return plane * plan.plane_size + strip * Patch<kLine>::kRows * plan.pitch +
         across * Patch<kLine>::kColumns;
}

DCLS_HD std::int64_t divide_up(std::int64_t a, std::int64_t b) {  // b > 0
  const std::int64_t q = geometry::quotient(a, b);
  return q * b < a ? q + 1 : q;
}

/// The cells of chunk `chunk` of class `index` that read anything but zeros.
DCLS_HD StageAxis stage_axis(const ConvAxis& axis, bool mirrored, std::int64_t index,
                             std::int64_t chunk) {
  StageAxis s;
  const geometry::AxisCell cell =
      geometry::axis_cell(index, axis.stride, axis.padding, axis.dilation);
  s.source_phase = mirrored ? 0 : cell.phase;
  s.target_phase = mirrored ? cell.phase : 0;
  s.source_length = geometry::phase_length(axis.source_size, s.source_phase, axis.source_step);
  s.target_length = geometry::phase_length(axis.target_size, s.target_phase, axis.target_step);
  const std::int64_t all = geometry::quotient(axis.kernel_size - index - 1, axis.class_step) + 1;
  const std::int64_t last = cell.shift + (all - 1) * axis.shift_step;
  const std::int64_t lowest = mirrored ? -last : cell.shift;
  std::int64_t lo = divide_up(1 - s.target_length - lowest, axis.shift_step);
  std::int64_t hi = divide_up(s.source_length - lowest, axis.shift_step);
  if (lo < 0) lo = 0;
  if (hi > all) hi = all;
  if (s.source_length == 0 || s.target_length == 0) hi = lo;
  lo += chunk * axis.chunk;
  const std::int64_t count = hi - lo < axis.chunk ? hi - lo : axis.chunk;
  s.count = count > 0 ? static_cast<int>(count) : 0;
  s.shift = lowest + lo * axis.shift_step;
  s.step = mirrored ? -axis.class_step : axis.class_step;
  s.first = index + (mirrored ? all - 1 - lo : lo) * axis.class_step;
  return s;
}

/// The class of the cells that write a phase of the target, in the gradient of the input; -1 if
/// there is none.
DCLS_HD std::int64_t class_of_phase(const ConvAxis& axis, std::int64_t phase) {
  if (axis.class_step == 1 && axis.stride == 1) return 0;
  const std::int64_t common = axis.stride / axis.class_step;
  const std::int64_t rest = (phase + axis.padding) % axis.stride;
  const std::int64_t offset = rest < 0 ? rest + axis.stride : rest;
  if (offset % common != 0) return -1;
  const std::int64_t index = offset / common * axis.inverse % axis.class_step;
  return index < axis.classes ? index : -1;
}

/// A stage by number: chunks of x vary fastest, then its classes, then those of y, then z.
struct StageIndex {
  std::int64_t z, class_y, chunk_y, class_x, chunk_x;
};
DCLS_HD StageIndex stage_index(const ConvPlan& plan, std::int64_t stage) {
  StageIndex s;
  s.chunk_x = geometry::take(stage, plan.axis[2].chunks);
  s.class_x = geometry::take(stage, plan.axis[2].classes);
  s.chunk_y = geometry::take(stage, plan.axis[1].chunks);
  s.class_y = geometry::take(stage, plan.axis[1].classes);
  s.z = stage;
  return s;
}

DCLS_HD std::int64_t stage_number(const ConvPlan& plan, const StageIndex& s) {
  const std::int64_t of_y = (s.z * plan.axis[1].classes + s.class_y) * plan.axis[1].chunks;
  const std::int64_t of_x = (of_y + s.chunk_y) * plan.axis[2].classes + s.class_x;
  return of_x * plan.axis[2].chunks + s.chunk_x;
}

/// The row of the kernel that joins target channel `target` and the n-th source channel of its
/// group.
DCLS_HD std::int64_t kernel_row(const ConvPlan& plan, std::int64_t target, std::int64_t n) {
  if (!plan.mirrored) return target * plan.source_per_group + n;
  const std::int64_t own = geometry::take(target, plan.target_per_group);
  return (target * plan.source_per_group + n) * plan.target_per_group + own;
}

/// The row of the lists, among all of a pass, that stands for a row of the kernel.
DCLS_HD std::int64_t list_row(const ConvPlan& plan, std::int64_t kernel_row) {
  if (!plan.mirrored) return kernel_row;
  const std::int64_t own = geometry::take(kernel_row, plan.target_per_group);
  const std::int64_t n = geometry::take(kernel_row, plan.source_per_group);
  return (kernel_row * plan.target_per_group + own) * plan.source_per_group + n;
}

/// The target channels of a channel block.
struct BlockChannels {
  std::int64_t first;
  int count;
};
DCLS_HD BlockChannels channels_of_block(const ConvPlan& plan, std::int64_t channel_block) {
  const std::int64_t first = geometry::take(channel_block, plan.group_blocks) * plan.slots;
  const std::int64_t rest = plan.block_group - first;
  return {channel_block * plan.block_group + first,
          rest < plan.slots ? static_cast<int>(rest) : plan.slots};
}

/// Whether the cell `r` of an axis reads the source at all.
DCLS_HD bool reads_source(const ConvAxis& axis, std::int64_t r) {
  const geometry::AxisCell cell = geometry::axis_cell(r, axis.stride, axis.padding, axis.dilation);
  const std::int64_t length =
      geometry::phase_length(axis.source_size, cell.phase, axis.source_step);
  return geometry::meets(cell.shift, length, axis.target_size);
}

}  // namespace dcls::cuda
