#pragma once

// Tiles of planes in shared memory, and the arithmetic of one thread's patch.

#include <cstdint>
#include <type_traits>

#include "cuda/conv/conv_tile_plan.hpp"
#include "cuda/conv/conv_units.cuh"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

/// One axis of a tile in the tensor.
struct TileAxis {
  std::int64_t first;  ///< offset of point 0, which may be outside
  std::int64_t step;   ///< from a point to the next
  int low, high;       ///< the points in the tensor

  /// Points begin, begin + 1 ... of a phase that has `length` of them, `pitch` values apart in the
  /// tensor without phases; at most `most`.
  __device__ __forceinline__ TileAxis(std::int64_t begin, std::int64_t length, std::int64_t phases,
                                      std::int64_t phase, std::int64_t pitch, int most)
      : first((begin * phases + phase) * pitch),
        step(phases * pitch),
        low(clamp(-begin, most)),
        high(clamp(length - begin, most)) {}

 private:
  static __device__ __forceinline__ int clamp(std::int64_t i, int most) {
    return i < 0 ? 0 : i < most ? static_cast<int>(i) : most;
  }
};

/// A tile of `valid_slots` channels.
struct Tile {
  TileAxis y, x;
  int valid_slots;
  std::int64_t channel_pitch;
};

/// Which channels, planes and points a block works on.
struct TargetBlock {
  std::int64_t channel;  ///< the first one
  int channels;
  std::int64_t plane, x, y;
  std::int64_t phase[3], length[3];  ///< of the target
};

__device__ __forceinline__ void set_channels(const ConvPlan& plan, std::int64_t channel_block,
                                             TargetBlock& block) {
  const BlockChannels channels = channels_of_block(plan, channel_block);
  block.channel = channels.first;
  block.channels = channels.count;
}

/// The channel block of an item, which becomes its number among the `others` of that channel block.
/// Channel blocks vary slowest; in channels_last fastest, since they share the sectors of memory.
__device__ __forceinline__ std::int64_t take_channel_block(const ConvPlan& plan, std::int64_t& item,
                                                           std::int64_t others) {
  if (plan.channels_last) return plan.first_block + geometry::take(item, plan.channel_blocks);
  std::int64_t block = item;
  item = geometry::take(block, others);
  return plan.first_block + block;
}

template <bool kLine>
__device__ __forceinline__ void set_tile_origin(const ConvPlan& plan, std::int64_t tile,
                                                TargetBlock& block) {
  block.x = geometry::take(tile, plan.tiles_x) * plan.patches * Patch<kLine>::kColumns;
  block.y = geometry::take(tile, plan.tiles_y) * plan.strips * Patch<kLine>::kRows;
  block.plane = tile * plan.planes;
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
  int patch;    ///< the others read that of their warp's first lane

  __device__ __forceinline__ explicit PatchPlace(const ConvPlan& plan) {
    const int thread = static_cast<int>(threadIdx.x);
    slot = thread / plan.slot_threads;
    index = thread % plan.slot_threads;
    active = index < plan.planes * plan.strips * plan.patches;
    patch = active ? index : index / kWarp * kWarp;
  }
};

/// Writes the places of a block's planes in the target, of length_z in phase `phase`.
__device__ __forceinline__ void place_target(const ConvPlan& plan, std::int64_t first,
                                             std::int64_t length, std::int64_t phase,
                                             std::int64_t* places) {
  for (int i = static_cast<int>(threadIdx.x); i < plan.planes; i += static_cast<int>(blockDim.x)) {
    std::int64_t image = first + i;
    const bool exists = image < plan.batch * length;
    const std::int64_t z = geometry::take(image, length) * plan.axis[0].target_step + phase;
    places[i] = exists ? image * plan.target.batch + z * plan.target.axis[0] : -1;
  }
}

/// The place in the source of a plane of the target, of length_z in its phase, for the cell `cell`
/// of the z axis; -1 for none.
__device__ __forceinline__ std::int64_t source_place(const ConvPlan& plan, std::int64_t plane,
                                                     std::int64_t length,
                                                     const geometry::AxisCell& cell) {
  if (plane >= plan.batch * length) return -1;
  const ConvAxis& axis = plan.axis[0];
  std::int64_t z = geometry::take(plane, length);
  z = plan.mirrored ? z - cell.shift : (z + cell.shift) * axis.stride + cell.phase;
  if (z < 0 || z >= axis.source_size) return -1;
  return plane * plan.source.batch + z * plan.source.axis[0];
}

/// Writes the places of a block's planes in the source.
__device__ __forceinline__ void place_source(const ConvPlan& plan, std::int64_t first,
                                             std::int64_t length, const geometry::AxisCell& cell,
                                             std::int64_t* places) {
  for (int i = static_cast<int>(threadIdx.x); i < plan.planes; i += static_cast<int>(blockDim.x)) {
    places[i] = source_place(plan, first + i, length, cell);
  }
}

/// The source's tile of a stage.
__device__ __forceinline__ Tile source_tile(const ConvPlan& plan, const TargetBlock& block,
                                            const StageAxis& y, const StageAxis& x) {
  return {{block.y + y.shift, y.source_length, plan.axis[1].source_step, y.source_phase,
           plan.source.axis[1], plan.tile_rows},
          {block.x + x.shift, x.source_length, plan.axis[2].source_step, x.source_phase,
           plan.source.axis[2], plan.tile_columns},
          plan.source_slots > 1 ? block.channels : 1,
          plan.source.channel};
}

/// The target's tile of a block, of the channels from its `first` one on.
template <bool kLine>
__device__ __forceinline__ Tile target_tile(const ConvPlan& plan, const TargetBlock& block,
                                            int first = 0) {
  const int rest = block.channels - first;
  return {{block.y, block.length[1], plan.axis[1].target_step, block.phase[1], plan.target.axis[1],
           plan.strips * Patch<kLine>::kRows},
          {block.x, block.length[2], plan.axis[2].target_step, block.phase[2], plan.target.axis[2],
           plan.patches * Patch<kLine>::kColumns},
          rest < plan.source_slots ? rest : plan.source_slots,
          plan.target.channel};
}

/// Visits the units of a list, all lanes of the warp together: use(unit, values of its cells).
/// They come into the warp's own part of shared memory first, some at a time: a load from global
/// memory for each would have to be waited for. `packed` null stands for no values.
template <typename T, typename Use>
__device__ __forceinline__ void for_units(const Unit* units, const T* packed, int count,
                                          unsigned char* shared, Use&& use) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Unit* const own = reinterpret_cast<Unit*>(shared);
  T* const values = reinterpret_cast<T*>(shared + kListUnits * sizeof(Unit));
  for (int first = 0; first < count; first += kListUnits) {
    const int part = count - first < kListUnits ? count - first : kListUnits;
    __syncwarp();  // the last ones have been read
    if (lane < part) own[lane] = units[first + lane];
    __syncwarp();
    const int begin = own[0].first();
    if (packed != nullptr) {
      const int end = own[part - 1].first() + own[part - 1].cells();
      for (int i = begin + lane; i < end; i += kWarp) values[i - begin] = packed[i];
      __syncwarp();
    }
    for (int u = 0; u < part; ++u) use(own[u], values + own[u].first() - begin);
  }
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
  for (int y = 0; y < P::kRows + kRows - 1; ++y) {
    T value[P::kColumns + kColumns - 1];
#pragma unroll
    for (int x = 0; x < P::kColumns + kColumns - 1; ++x) value[x] = source[y * pitch + x];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = y - r;
      if (row < 0 || row >= P::kRows) continue;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int column = 0; column < P::kColumns; ++column)
          use(row, column, r, c, value[column + c]);
      }
    }
  }
}

}  // namespace dcls::cuda
