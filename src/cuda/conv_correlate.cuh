#pragma once

// Forward pass and gradient of the input: target = sum over cells of shifted sources.

#include <cstdint>

#include "cuda/conv_tile.cuh"

namespace dcls::cuda {

/// Each block computes one tile of the target and writes it once, in a fixed order of additions.
/// `lists` are those of conv_list_units; `bias` is null or has one value a channel.
template <typename Storage, bool kLine>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<Compute<Storage>>)
    conv_correlate(const ConvPlan plan, const Storage* source, const std::int32_t* counts,
                   const Unit* units, const Compute<Storage>* weights, const Storage* bias,
                   Storage* target) {
  using T = Compute<Storage>;
  using P = Patch<kLine>;
  __shared__ std::int64_t places[kMostPlanes];
  T* const shared = dynamic_shared<T>();
  const PatchPlace own(plan);
  const T* const from = shared + (plan.source_slots > 1 ? own.slot * plan.source_slot : 0) +
                        own.origin<kLine>(plan.tile_rows, plan.pitch);
  const std::int64_t items = plan.channel_blocks * plan.phases * plan.tiles;

  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    TargetBlock block;
    set_tile_origin<kLine>(plan, item % plan.tiles, block);
    std::int64_t rest = item / plan.tiles;
    set_channels(plan, rest / plan.phases, block);
    rest %= plan.phases;
    std::int64_t phase[3];
    std::int64_t length[3];
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      const ConvAxis& axis = plan.axis[d];
      const std::int64_t phases =
          axis.target_step < axis.target_size ? axis.target_step : axis.target_size;
      phase[d] = rest % phases;
      rest /= phases;
      length[d] = geometry::phase_length(axis.target_size, phase[d], axis.target_step);
    }
    // Tiles are those of the longest phase.
    if (block.y >= length[1] || block.x >= length[2] || block.plane >= plan.batch * length[0]) {
      continue;
    }

    T sum[P::kRows][P::kColumns];
#pragma unroll
    for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
      for (int c = 0; c < P::kColumns; ++c) sum[r][c] = T(0);
    }
    const bool active = own.active && own.slot < block.channels;
    for (std::int64_t stage = 0; stage < plan.stages; ++stage) {
      const StageIndex at = stage_index(plan, stage);
      const StageAxis y = stage_axis(plan.axis[1], plan.mirrored, at.class_y, at.chunk_y);
      const StageAxis x = stage_axis(plan.axis[2], plan.mirrored, at.class_x, at.chunk_x);
      if (y.count == 0 || x.count == 0) continue;
      const geometry::AxisCell z = geometry::axis_cell(at.z, plan.axis[0].stride,
                                                       plan.axis[0].padding, plan.axis[0].dilation);
      if (plan.mirrored &&
          (z.phase != phase[0] || y.target_phase != phase[1] || x.target_phase != phase[2])) {
        continue;
      }
      __syncthreads();  // the tile and the places of the last stage have been read
      place_source(plan, block.plane, length[0], z, places);
      __syncthreads();
      const Tile tile = source_tile(plan, block, y, x);
      for (std::int64_t n = 0; n < plan.source_per_group; ++n) {
        bool any = false;
        for (int slot = 0; slot < block.channels; ++slot) {
          any = any || counts[kernel_row(plan, block.channel + slot, n) * plan.stages + stage] > 0;
        }
        if (!any) continue;
        // Depthwise, the source's channel is the target's; else all slots are of one group.
        const std::int64_t channel =
            block.channel / plan.target_per_group * plan.source_per_group + n;
        const Storage* const begin = source + channel * plan.source.channel;
        __syncthreads();  // the last tile has been read
        for_tile<kLine>(tile, places, [&](int place, std::int64_t offset, int) {
          shared[place] = offset >= 0 ? numeric::load(begin[offset]) : T(0);
        });
        __syncthreads();
        if (!active) continue;
        const std::int64_t list =
            kernel_row(plan, block.channel + own.slot, n) * plan.stages + stage;
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
    place_target(plan, block.plane, length[0], phase[0], places);
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
    for_tile<kLine>(target_tile<kLine>(plan, block, length, phase), places,
                    [&](int place, std::int64_t offset, int slot) {
                      if (offset < 0) return;
                      const T own_bias =
                          bias != nullptr ? numeric::load(bias[block.channel + slot]) : T(0);
                      numeric::store(begin + offset, shared[place] + own_bias);
                    });
    __syncthreads();  // before the next item's stages
  }
}

}  // namespace dcls::cuda
