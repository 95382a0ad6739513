#pragma once

// Forward pass and gradient of the input: target = sum over cells of shifted sources.

#include <cstdint>

#include "cuda/conv/conv_copy.cuh"
#include "cuda/conv/conv_tile.cuh"

namespace dcls::cuda {

/// Where a block works. One thread finds it out, with its many divisions, for all.
struct BlockPlace : TargetBlock {
  std::int64_t row;             ///< of the launch's lists, of the first channels
  std::int64_t source_channel;  ///< the first one
  bool empty;                   ///< behind the end of a phase
  std::int64_t stages;          ///< that write it
  StageIndex first_stage;       ///< of them, in the gradient of the input

  template <bool kLine>
  __device__ __forceinline__ void find(const ConvPlan& plan, std::int64_t item) {
    const std::int64_t channel_block = take_channel_block(plan, item, plan.tiles * plan.phases);
    set_channels(plan, channel_block, *this);
    set_tile_origin<kLine>(plan, geometry::take(item, plan.tiles), *this);
    for (int d = 2; d >= 0; --d) {
      const ConvAxis& axis = plan.axis[d];
      const std::int64_t phases =
          axis.target_step < axis.target_size ? axis.target_step : axis.target_size;
      phase[d] = geometry::take(item, phases);
      length[d] = geometry::phase_length(axis.target_size, phase[d], axis.target_step);
    }
    row = channel * plan.source_per_group - plan.first_list_row;
    // Depthwise, it is the target's; else all slots are of one group.
    source_channel = geometry::quotient(channel, plan.target_per_group) * plan.source_per_group;
    // Tiles are those of the longest phase.
    empty = y >= length[1] || x >= length[2] || plane >= plan.batch * length[0];
    stages = plan.stages;
    first_stage = {};
    if (!plan.mirrored) return;
    const ConvAxis &az = plan.axis[0], &ay = plan.axis[1], &ax = plan.axis[2];
    first_stage = {class_of_phase(az, phase[0]), class_of_phase(ay, phase[1]), 0,
                   class_of_phase(ax, phase[2]), 0};
    const bool any = first_stage.z >= 0 && first_stage.class_y >= 0 && first_stage.class_x >= 0;
    stages =
        any ? divide_up(az.kernel_size - first_stage.z, az.class_step) * ay.chunks * ax.chunks : 0;
  }

  /// The n-th stage that writes the block. To look through all would take a time that grows with
  /// the product of the phases and the stages, and so with the square of the stride.
  __device__ __forceinline__ std::int64_t stage(const ConvPlan& plan, std::int64_t n) const {
    if (!plan.mirrored) return n;
    StageIndex s = first_stage;
    s.chunk_x = geometry::take(n, plan.axis[2].chunks);
    s.chunk_y = geometry::take(n, plan.axis[1].chunks);
    s.z += n * plan.axis[0].class_step;
    return stage_number(plan, s);
  }
};

/// A value of the gradient of the input again, of what its cells read alone: in a tile, a weight
/// that is not finite also meets the zeros around the gradient of the output.
template <typename Storage>
__device__ __forceinline__ Compute<Storage> sum_again(const ConvPlan& plan, const BlockPlace& block,
                                                      const TilePoint& at, int slot,
                                                      const Storage* source,
                                                      const std::int32_t* counts, const Unit* units,
                                                      const Compute<Storage>* weights) {
  Compute<Storage> sum = 0;
#pragma unroll 1
  for (std::int64_t n_stage = 0; n_stage < block.stages; ++n_stage) {
    const std::int64_t stage = block.stage(plan, n_stage);
    StageCells cells;
    cells.find(plan, stage, block.phase);
    if (!cells.used) continue;
    const std::int64_t place = source_place(plan, block.plane + at.plane, block.length[0], cells.z);
    if (place < 0) continue;
    const Tile tile = source_tile(plan, block, cells.y, cells.x);
    const Storage* from =
        source + place + tile.y.first + tile.x.first +
        (block.source_channel + (plan.source_slots > 1 ? slot : 0)) * plan.source.channel;
    std::int64_t list = (block.row + slot * plan.source_per_group) * plan.stages + stage;
#pragma unroll 1
    for (std::int64_t n = 0; n < plan.source_per_group; ++n) {
#pragma unroll 1
      for (int u = 0; u < counts[list]; ++u) {
        const Unit unit = units[list * plan.stage_cells + u];
#pragma unroll 1
        for (int i = 0; i < unit.cells(); ++i) {
          const int y = at.row + unit.offset / plan.pitch + i % unit.rows();
          const int x = at.column + unit.offset % plan.pitch + i / unit.rows();
          if (y < tile.y.low || y >= tile.y.high || x < tile.x.low || x >= tile.x.high) continue;
          sum += weights[list * plan.stage_cells + unit.first() + i] *
                 numeric::load(from[y * tile.y.step + x * tile.x.step]);
        }
      }
      from += plan.source.channel;
      list += plan.stages;
    }
  }
  return sum;
}

/// The same for all values that this thread has stored and that are NaN.
template <typename Storage, bool kLine>
__device__ __forceinline__ void sum_nan_again(const ConvPlan& plan, const BlockPlace& block,
                                              const std::int64_t* places, const Storage* source,
                                              const std::int32_t* counts, const Unit* units,
                                              const Compute<Storage>* weights, Storage* target) {
#pragma unroll 1
  for (int first = 0; first < block.channels; first += plan.source_slots) {
    for_tile_points<kLine>(plan, target_tile<kLine>(plan, block, first), places,
                           target + (block.channel + first) * plan.target.channel,
                           [&](Storage* to, const TilePoint& at) {
                             const auto value = numeric::load(*to);
                             if (value == value) return;
                             numeric::store(to, sum_again(plan, block, at, first + at.slot, source,
                                                          counts, units, weights));
                           });
  }
}

/// Each block computes one tile of the target and writes it once, in a fixed order of additions.
/// `lists` are those of conv_list_units; `bias` is null or has one value a channel.
template <typename Storage, bool kLine>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<Compute<Storage>>)
    conv_forward(const __grid_constant__ ConvPlan plan, const Storage* source,
                 const std::int32_t* counts, const Unit* units, const Compute<Storage>* weights,
                 const Storage* bias, Storage* target) {
  using T = Compute<Storage>;
  using P = Patch<kLine>;
  __shared__ std::int64_t places[kMostPlanes];
  __shared__ BlockPlace block;
  __shared__ StageCells cells;
  static_assert(sizeof(places) + sizeof(block) + sizeof(cells) <= kConvStatic);
  T* const shared = dynamic_shared<T>();
  const PatchPlace own(plan);
  const int own_tile = plan.source_slots > 1 ? own.slot : 0;
  T* const patch = shared + own_tile * plan.slot_size + patch_origin<kLine>(plan, own.patch);
  unsigned char* const own_list = dynamic_shared<unsigned char>() + tile_bytes(plan, sizeof(T)) +
                                  static_cast<int>(threadIdx.x) / kWarp * list_bytes(sizeof(T));
  const std::int64_t items = plan.channel_blocks * plan.phases * plan.tiles;

  std::int64_t item = blockIdx.x;
  // Counts rounds, not items, which would keep one more register all the time.
  for (unsigned round = 1; item < items; item = blockIdx.x + round++ * std::int64_t{gridDim.x}) {
    if (threadIdx.x == 0) block.find<kLine>(plan, item);
    __syncthreads();
    if (block.empty) {
      __syncthreads();  // before the next item's place
      continue;
    }
    T sum[P::kRows][P::kColumns];
#pragma unroll
    for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
      for (int c = 0; c < P::kColumns; ++c) sum[r][c] = T(0);
    }
    for (std::int64_t n_stage = 0; n_stage < block.stages; ++n_stage) {
      const std::int64_t stage = block.stage(plan, n_stage);
      __syncthreads();  // the tile and the places of the last stage have been read
      if (threadIdx.x == 0) cells.find(plan, stage, block.phase);
      __syncthreads();
      if (!cells.used) continue;
      place_source(plan, block.plane, block.length[0], cells.z, places);
      for (std::int64_t n = 0; n < plan.source_per_group; ++n) {
        const std::int64_t first_list = (block.row + n) * plan.stages + stage;
        const std::int64_t list_step = plan.source_per_group * plan.stages;
        bool any = false;
        for (int slot = 0; slot < block.channels; ++slot) {
          any = any || counts[first_list + slot * list_step] > 0;
        }
        if (!any) continue;
        const Storage* const begin = source + (block.source_channel + n) * plan.source.channel;
        __syncthreads();  // the last tile has been read
        load_tile<kLine>(plan, source_tile(plan, block, cells.y, cells.x), places, begin, shared);
        __syncthreads();
        if (own.slot >= block.channels) continue;
        const std::int64_t list = first_list + own.slot * list_step;
        for_units(units + list * plan.stage_cells, weights + list * plan.stage_cells, counts[list],
                  own_list, [&](const Unit& unit, const T* w) {
                    dispatch_unit<kLine>(unit, [&](auto rows, auto columns) {
                      T weight[columns.value][rows.value];
#pragma unroll
                      for (int c = 0; c < columns.value; ++c) {
#pragma unroll
                        for (int r = 0; r < rows.value; ++r) weight[c][r] = w[c * rows.value + r];
                      }
                      for_products<kLine, rows.value, columns.value>(
                          patch + unit.offset, plan.pitch,
                          [&](int row, int column, int r, int c, T value) {
                            sum[row][column] += weight[c][r] * value;
                          });
                    });
                  });
      }
    }

    bool nan = false;  // among the values that this thread stores
    // Through shared memory, so that lanes write along the tensor's innermost axis: as many
    // channels at a time as have room.
    for (int first = 0; first < block.channels; first += plan.source_slots) {
      __syncthreads();  // what is there has been read
      if (first == 0) place_target(plan, block.plane, block.length[0], block.phase[0], places);
      const int ahead = own.slot - first;
      if (own.active && own.slot < block.channels && ahead >= 0 && ahead < plan.source_slots) {
        const T add = bias != nullptr ? numeric::load(bias[block.channel + own.slot]) : T(0);
#pragma unroll
        for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
          for (int c = 0; c < P::kColumns; ++c) patch[r * plan.pitch + c] = sum[r][c] + add;
        }
      }
      __syncthreads();
      store_tile<kLine>(plan, target_tile<kLine>(plan, block, first), places, shared,
                        target + (block.channel + first) * plan.target.channel,
                        [&](T value) { nan = nan || value != value; });
    }
    if (nan && plan.mirrored) {
      sum_nan_again<Storage, kLine>(plan, block, places, source, counts, units, weights, target);
    }
    __syncthreads();  // before the next item's stages
  }
}

}  // namespace dcls::cuda
