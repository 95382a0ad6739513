#pragma once

// Forward pass and gradient of the input: target = sum over cells of shifted sources.

#include <cstdint>

#include "cuda/conv/conv_copy.cuh"
#include "cuda/conv/conv_tile.cuh"

namespace dcls::cuda {

/// Where a block works. One thread finds it out, with its many divisions, for all.
struct BlockPlace : TargetBlock {
  std::int64_t phase[3], length[3];  ///< of the target
  std::int64_t row;                  ///< of the kernel, of the first channels
  std::int64_t source_channel;       ///< the first one
  bool empty;                        ///< behind the end of a phase
  std::int64_t stages;               ///< that write it
  StageIndex first_stage;            ///< of them, in the gradient of the input

  template <bool kLine>
  __device__ __forceinline__ void find(const ConvPlan& plan, std::int64_t item) {
    set_tile_origin<kLine>(plan, item % plan.tiles, *this);
    item /= plan.tiles;
    set_channels(plan, item / plan.phases, *this);
    item %= plan.phases;
    for (int d = 2; d >= 0; --d) {
      const ConvAxis& axis = plan.axis[d];
      const std::int64_t phases =
          axis.target_step < axis.target_size ? axis.target_step : axis.target_size;
      phase[d] = item % phases;
      item /= phases;
      length[d] = geometry::phase_length(axis.target_size, phase[d], axis.target_step);
    }
    row = kernel_row(plan, channel, 0);
    // Depthwise, it is the target's; else all slots are of one group.
    source_channel = channel / plan.target_per_group * plan.source_per_group;
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
    s.chunk_x = n % plan.axis[2].chunks;
    n /= plan.axis[2].chunks;
    s.chunk_y = n % plan.axis[1].chunks;
    s.z += n / plan.axis[1].chunks * plan.axis[0].class_step;
    return stage_number(plan, s);
  }
};

/// Each block computes one tile of the target and writes it once, in a fixed order of additions.
/// `lists` are those of conv_list_units; `bias` is null or has one value a channel.
template <typename Storage, bool kLine>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<Compute<Storage>>)
    conv_forward(const ConvPlan plan, const Storage* source, const std::int32_t* counts,
                 const Unit* units, const Compute<Storage>* weights, const Storage* bias,
                 Storage* target) {
  using T = Compute<Storage>;
  using P = Patch<kLine>;
  __shared__ std::int64_t places[kMostPlanes];
  __shared__ BlockPlace block;
  __shared__ StageCells cells;
  static_assert(sizeof(places) + sizeof(block) + sizeof(cells) <= kConvStatic);
  T* const shared = dynamic_shared<T>();
  const PatchPlace own(plan);
  const T* const from = shared + (plan.source_slots > 1 ? own.slot * plan.source_slot : 0) +
                        own.origin<kLine>(plan.tile_rows, plan.pitch);
  const std::int64_t items = plan.channel_blocks * plan.phases * plan.tiles;

  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    if (threadIdx.x == 0) block.find<kLine>(plan, item);
    __syncthreads();
    if (block.empty) {
      __syncthreads();  // before the next item's place
      continue;
    }
    const bool active = own.active && own.slot < block.channels;
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
        const std::int64_t first_list = (block.row + n * plan.row_source) * plan.stages + stage;
        const std::int64_t list_step = plan.row_slot * plan.stages;
        bool any = false;
        for (int slot = 0; slot < block.channels; ++slot) {
          any = any || counts[first_list + slot * list_step] > 0;
        }
        if (!any) continue;
        const Storage* const begin = source + (block.source_channel + n) * plan.source.channel;
        __syncthreads();  // the last tile has been read
        load_tile<kLine>(source_tile(plan, block, cells.y, cells.x), places, begin, shared);
        __syncthreads();
        if (!active) continue;
        const std::int64_t list = first_list + own.slot * list_step;
        const Unit* const own_units = units + list * plan.stage_cells;
        const T* const own_weights = weights + list * plan.stage_cells;
        const int count = counts[list];
        Unit next = count > 0 ? own_units[0] : Unit{};
        for (int u = 0; u < count; ++u) {
          const Unit unit = next;
          if (u + 1 < count) next = own_units[u + 1];  // while this one computes
          const T* const w = own_weights + unit.first();
          dispatch_unit<kLine>(unit, [&](auto rows, auto columns) {
            T weight[columns.value][rows.value];
#pragma unroll
            for (int c = 0; c < columns.value; ++c) {
#pragma unroll
              for (int r = 0; r < rows.value; ++r) weight[c][r] = w[c * rows.value + r];
            }
            for_products<kLine, rows.value, columns.value>(
                from + unit.offset, plan.pitch, [&](int row, int column, int r, int c, T value) {
                  sum[row][column] += weight[c][r] * value;
                });
          });
        }
      }
    }

    // Through shared memory, so that lanes write along the tensor's innermost axis.
    __syncthreads();
    place_target(plan, block.plane, block.length[0], block.phase[0], places);
    if (active) {
      const int pitch = plan.patches * P::kColumns;
      T* const to =
          shared + own.slot * plan.target_slot + own.origin<kLine>(plan.strips * P::kRows, pitch);
#pragma unroll
      for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < P::kColumns; ++c) to[r * pitch + c] = sum[r][c];
      }
    }
    __syncthreads();
    Storage* const begin = target + block.channel * plan.target.channel;
    store_tile<kLine>(target_tile<kLine>(plan, block, block.length, block.phase), places, shared,
                      begin, [&](int slot) {
                        return bias != nullptr ? numeric::load(bias[block.channel + slot]) : T(0);
                      });
    __syncthreads();  // before the next item's stages
  }
}

}  // namespace dcls::cuda
