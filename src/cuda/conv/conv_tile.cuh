#pragma once

// Tiles of planes in shared memory, and the arithmetic of one thread's patch.

#include <cstdint>
#include <type_traits>

#include "cuda/conv/conv_tile_plan.hpp"
#include "cuda/conv/conv_units.cuh"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

/// One axis of a tile: points begin, begin + 1 ... of a phase that has `length` of them.
struct TileAxis {
  std::int64_t begin, length, step, phase, pitch;

  __device__ __forceinline__ bool has(std::int64_t i) const {
    return begin + i >= 0 && begin + i < length;
  }
  __device__ __forceinline__ std::int64_t offset(std::int64_t i) const {
    return ((begin + i) * step + phase) * pitch;
  }
  /// The i, up to `most`, for which has(i): from low() to below high().
  __device__ __forceinline__ int low(int most) const { return clamp(-begin, most); }
  __device__ __forceinline__ int high(int most) const { return clamp(length - begin, most); }

 private:
  static __device__ __forceinline__ int clamp(std::int64_t i, int most) {
    return i < 0 ? 0 : i < most ? static_cast<int>(i) : most;
  }
};

/// A tile: `slots` channels of `planes` planes of rows * columns points.
struct Tile {
  TileAxis y, x;
  int planes, rows, columns;
  int slots, valid_slots;
  int slot_size;  ///< in shared memory
  std::int64_t channel_pitch;
};

/// Which channels, planes and points a block works on.
struct TargetBlock {
  std::int64_t channel;  ///< the first one
  int channels;
  std::int64_t plane, x, y;
};

__device__ __forceinline__ void set_channels(const ConvPlan& plan, std::int64_t channel_block,
                                             TargetBlock& block) {
  const std::int64_t group = channel_block / plan.group_blocks;
  const std::int64_t first = channel_block % plan.group_blocks * plan.slots;
  const std::int64_t rest = plan.block_group - first;
  block.channel = group * plan.block_group + first;
  block.channels = rest < plan.slots ? static_cast<int>(rest) : plan.slots;
}

template <bool kLine>
__device__ __forceinline__ void set_tile_origin(const ConvPlan& plan, std::int64_t tile,
                                                TargetBlock& block) {
  block.x = tile % plan.tiles_x * plan.patches * Patch<kLine>::kColumns;
  tile /= plan.tiles_x;
  block.y = tile % plan.tiles_y * plan.strips * Patch<kLine>::kRows;
  block.plane = tile / plan.tiles_y * plan.planes;
}

/// What a block reads in one stage; found by one thread.
struct StageCells {
  StageAxis y, x;
  geometry::AxisCell z;
  bool used;  ///< whether there is any cell, of the phase of the target

  __device__ __forceinline__ void find(const ConvPlan& plan, std::int64_t stage,
                                       const std::int64_t (&phase)[3]) {
    const StageIndex at = stage_index(plan, stage);
    y = stage_axis(plan.axis[1], plan.mirrored, at.class_y, at.chunk_y);
    x = stage_axis(plan.axis[2], plan.mirrored, at.class_x, at.chunk_x);
    const ConvAxis& axis = plan.axis[0];
    z = geometry::axis_cell(at.z, axis.stride, axis.padding, axis.dilation);
    used = y.count > 0 && x.count > 0 &&
           (!plan.mirrored ||
            (z.phase == phase[0] && y.target_phase == phase[1] && x.target_phase == phase[2]));
  }
};

/// This thread's place in its block.
struct PatchPlace {
  int slot;
  int index;    ///< in the slot
  bool active;  ///< whether there is a patch for it
  int plane, strip, across;

  __device__ __forceinline__ explicit PatchPlace(const ConvPlan& plan) {
    const int thread = static_cast<int>(threadIdx.x);
    slot = thread / plan.slot_threads;
    index = thread % plan.slot_threads;
    active = index < plan.planes * plan.strips * plan.patches;
    const int patch = active ? index : 0;
    across = patch % plan.patches;
    strip = patch / plan.patches % plan.strips;
    plane = patch / (plan.patches * plan.strips);
  }
  /// Its first point in a tile of planes of `rows` rows, `pitch` values apart.
  template <bool kLine>
  __device__ __forceinline__ int origin(int rows, int pitch) const {
    return (plane * rows + strip * Patch<kLine>::kRows) * pitch + across * Patch<kLine>::kColumns;
  }
};

/// Writes the places of a block's planes in the target, of length_z in phase `phase`.
__device__ __forceinline__ void place_target(const ConvPlan& plan, std::int64_t first,
                                             std::int64_t length, std::int64_t phase,
                                             std::int64_t* places) {
  for (int i = static_cast<int>(threadIdx.x); i < plan.planes; i += static_cast<int>(blockDim.x)) {
    const std::int64_t plane = first + i;
    places[i] = plane < plan.batch * length
                    ? plane / length * plan.target.batch +
                          (plane % length * plan.axis[0].target_step + phase) * plan.target.axis[0]
                    : -1;
  }
}

/// The same in the source, for the cell `cell` of the z axis.
__device__ __forceinline__ void place_source(const ConvPlan& plan, std::int64_t first,
                                             std::int64_t length, const geometry::AxisCell& cell,
                                             std::int64_t* places) {
  const ConvAxis& axis = plan.axis[0];
  for (int i = static_cast<int>(threadIdx.x); i < plan.planes; i += static_cast<int>(blockDim.x)) {
    const std::int64_t plane = first + i;
    std::int64_t place = -1;
    if (plane < plan.batch * length) {
      const std::int64_t z = plan.mirrored
                                 ? plane % length - cell.shift
                                 : (plane % length + cell.shift) * axis.stride + cell.phase;
      if (z >= 0 && z < axis.source_size) {
        place = plane / length * plan.source.batch + z * plan.source.axis[0];
      }
    }
    places[i] = place;
  }
}

/// The source's tile of a stage.
__device__ __forceinline__ Tile source_tile(const ConvPlan& plan, const TargetBlock& block,
                                            const StageAxis& y, const StageAxis& x) {
  Tile tile;
  tile.y = {block.y + y.shift, y.source_length, plan.axis[1].source_step, y.source_phase,
            plan.source.axis[1]};
  tile.x = {block.x + x.shift, x.source_length, plan.axis[2].source_step, x.source_phase,
            plan.source.axis[2]};
  tile.planes = plan.planes;
  tile.rows = plan.tile_rows;
  tile.columns = plan.pitch;
  tile.slots = plan.source_slots;
  tile.valid_slots = plan.source_slots > 1 ? block.channels : 1;
  tile.slot_size = plan.source_slot;
  tile.channel_pitch = plan.source.channel;
  return tile;
}

/// The target's tile of a block.
template <bool kLine>
__device__ __forceinline__ Tile target_tile(const ConvPlan& plan, const TargetBlock& block,
                                            const std::int64_t (&length)[3],
                                            const std::int64_t (&phase)[3]) {
  Tile tile;
  tile.y = {block.y, length[1], plan.axis[1].target_step, phase[1], plan.target.axis[1]};
  tile.x = {block.x, length[2], plan.axis[2].target_step, phase[2], plan.target.axis[2]};
  tile.planes = plan.planes;
  tile.rows = plan.strips * Patch<kLine>::kRows;
  tile.columns = plan.patches * Patch<kLine>::kColumns;
  tile.slots = plan.slots;
  tile.valid_slots = block.channels;
  tile.slot_size = plan.target_slot;
  tile.channel_pitch = plan.target.channel;
  return tile;
}

/// Calls function(rows, columns) with the unit's as integral constants. Uniform in a warp.
template <bool kLine, typename Function>
__device__ __forceinline__ void dispatch_unit(const Unit& unit, Function&& function) {
  const auto with_rows = [&](auto columns) {
    switch (unit.rows()) {
      case 1: return function(std::integral_constant<int, 1>{}, columns);
      case 2: return function(std::integral_constant<int, 2>{}, columns);
      case 3: return function(std::integral_constant<int, 3>{}, columns);
      default: return function(std::integral_constant<int, 4>{}, columns);
    }
  };
  if constexpr (!kLine) {
    if (unit.columns() == 2) return with_rows(std::integral_constant<int, 2>{});
  }
  with_rows(std::integral_constant<int, 1>{});
}

/// Visits all products of a patch and a unit: calls use(row, column, unit row, unit column, value),
/// with all indices known to the compiler after unrolling, and each value loaded once.
template <bool kLine, int kRows, int kColumns, typename T, typename Use>
__device__ __forceinline__ void for_products(const T* source, int pitch, Use&& use) {
  using P = Patch<kLine>;
#pragma unroll
  for (int x = 0; x < P::kColumns + kColumns - 1; ++x) {
    T value[P::kRows + kRows - 1];
#pragma unroll
    for (int y = 0; y < P::kRows + kRows - 1; ++y) value[y] = source[y * pitch + x];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int column = x - c;
      if (column < 0 || column >= P::kColumns) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int row = 0; row < P::kRows; ++row) use(row, column, r, c, value[row + r]);
      }
    }
  }
}

}  // namespace dcls::cuda
