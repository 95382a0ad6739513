#pragma once

// Gradient of the kernel: for each cell, the products of the gradient of the output with the
// shifted input, summed over batch and space.

#include <cstdint>

#include "core/conv_exact.hpp"
#include "cuda/conv/conv_copy.cuh"
#include "cuda/conv/conv_tile.cuh"

namespace dcls::cuda {

/// Sums kCount values each over a warp, at the price of few shuffles: lane 4 * i holds the i-th of
/// 8, 8 * i of 4, 16 * i of 2. All lanes of the warp take part.
template <int kCount, typename T>
__device__ __forceinline__ T sum_many(T (&value)[kCount], int lane) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4 || kCount == 8, "powers of two");
  int offset = kWarp / 2;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T keep = upper ? value[i + half] : value[i];
      const T give = upper ? value[i] : value[i + half];
      value[i] = keep + __shfl_xor_sync(kFullWarp, give, offset);
    }
    offset /= 2;
  }
#pragma unroll
  for (int o = kWarp / 2 / kCount; o > 0; o /= 2) {
    value[0] += __shfl_xor_sync(kFullWarp, value[0], o);
  }
  return value[0];
}

DCLS_HD constexpr int power_of_two(int count) {
  return count <= 1 ? 1 : count <= 2 ? 2 : count <= 4 ? 4 : 8;
}

/// Where a block works; found by one thread, as in conv_forward.
struct KernelBlock : TargetBlock {
  std::int64_t row;  ///< of the kernel, of the first channels
  std::int64_t source_channel;
  std::int64_t stage, split;
  bool leads;              ///< is the first of the blocks that read these gradients
  bool any;                ///< cells, in shared memory because registers are few
  std::int64_t tile, end;  ///< the range of its split
  std::int64_t slab;       ///< of the kernel, of its stage

  __device__ __forceinline__ void find(const ConvPlan& plan, std::int64_t item) {
    const std::int64_t channel_block =
        take_channel_block(plan, item, plan.splits * plan.stages * plan.source_per_group);
    set_channels(plan, channel_block, *this);
    split = geometry::take(item, plan.splits);
    stage = geometry::take(item, plan.stages);
    const std::int64_t n = item;
    leads = n == 0 && stage == 0;
    row = channel * plan.source_per_group + n;
    source_channel = geometry::quotient(channel, plan.target_per_group) * plan.source_per_group + n;
    for (int d = 0; d < 3; ++d) {
      phase[d] = 0;  // the target has one phase only
      length[d] = plan.axis[d].target_size;
    }
    const std::int64_t share = plan.tiles / plan.splits;
    const std::int64_t longer = plan.tiles % plan.splits;  // as many splits have one more
    tile = share * split + (split < longer ? split : longer);
    end = tile + share + (split < longer ? 1 : 0);
    slab = stage_index(plan, stage).z * plan.axis[1].kernel_size * plan.axis[2].kernel_size;
  }
};

/// One split of the sums: a block takes the cells of one stage and a range of tiles, and writes
/// partial[split][kernel row][cell]. `counts` null stands for no cells. Where `bias` is not null,
/// one block for each split and target channel writes bias[split][channel], the sum of the target.
template <typename Storage, bool kLine>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<Compute<Storage>>)
    conv_kernel_partial(const __grid_constant__ ConvPlan plan, const Storage* source,
                        const Storage* target, const std::int32_t* counts, const Unit* units,
                        const std::uint32_t* cells, Compute<Storage>* partial,
                        Compute<Storage>* bias) {
  using T = Compute<Storage>;
  using P = Patch<kLine>;
  __shared__ std::int64_t places[kMostPlanes];
  __shared__ KernelBlock block;
  __shared__ StageCells place;
  __shared__ T bias_sums[kConvThreads / kWarp];
  static_assert(sizeof(places) + sizeof(block) + sizeof(place) + sizeof(bias_sums) <= kConvStatic);
  T* const shared = dynamic_shared<T>();
  const PatchPlace own(plan);
  const T* const patch = shared + (plan.source_slots > 1 ? own.slot : 0) * plan.slot_size +
                         patch_origin<kLine>(plan, own.patch);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int stage_cells = static_cast<int>(plan.stage_cells);
  // Behind the tile: of each warp a list, then of each warp the sums.
  unsigned char* const lists = dynamic_shared<unsigned char>() + tile_bytes(plan, sizeof(T));
  unsigned char* const own_list = lists + warp * list_bytes(sizeof(T));
  T* const sums =
      reinterpret_cast<T*>(lists + static_cast<int>(blockDim.x) / kWarp * list_bytes(sizeof(T)));
  T* const own_sums = sums + warp * stage_cells;
  const std::int64_t items =
      plan.channel_blocks * plan.source_per_group * plan.stages * plan.splits;

  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    if (threadIdx.x == 0) {
      block.find(plan, item);
      place.find(plan, block.stage, block.phase);
    }
    __syncthreads();
    const std::int64_t first_list = (block.row - plan.first_list_row) * plan.stages + block.stage;
    const std::int64_t list_step = plan.source_per_group * plan.stages;
    bool any = false;
    for (int slot = 0; counts != nullptr && slot < block.channels; ++slot) {
      any = any || counts[first_list + slot * list_step] > 0;
    }
    if (!any && (bias == nullptr || !block.leads)) {
      __syncthreads();  // before the next item's place
      continue;
    }
    if (threadIdx.x == 0) block.any = any;
    const bool valid = own.slot < block.channels;
    const std::int64_t list = any ? first_list + (valid ? own.slot * list_step : 0) : 0;
    const Unit* const own_units = units + list * plan.stage_cells;
    const int count = any && valid ? counts[list] : 0;
    const int cell_count = count == 0
                               ? 0
                               : own_units[count - 1].first() +
                                     own_units[count - 1].rows() * own_units[count - 1].columns();
    for (int i = lane; i < cell_count; i += kWarp) own_sums[i] = T(0);
    if (lane == 0) bias_sums[warp] = T(0);

    const Storage* const source_begin = source + block.source_channel * plan.source.channel;
    const Storage* const target_begin = target + block.channel * plan.target.channel;
    for (std::int64_t tile = block.tile; tile < block.end; ++tile) {
      __syncthreads();  // the last tile has been read
      if (threadIdx.x == 0) set_tile_origin<kLine>(plan, tile, block);
      __syncthreads();
      place_target(plan, block.plane, block.length[0], 0, places);
      __syncthreads();
      load_tile<kLine>(plan, target_tile<kLine>(plan, block), places, target_begin, shared);
      __syncthreads();
      T gradient[P::kRows][P::kColumns];
#pragma unroll
      for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
        for (int c = 0; c < P::kColumns; ++c) {
          gradient[r][c] = own.active ? patch[r * plan.pitch + c] : T(0);
        }
      }
      if (bias != nullptr && block.leads) {
        T sum = T(0);
#pragma unroll
        for (int r = 0; r < P::kRows; ++r) {
#pragma unroll
          for (int c = 0; c < P::kColumns; ++c) sum += gradient[r][c];
        }
        sum = group_sum<kWarp>(sum);
        if (lane == 0) bias_sums[warp] += sum;
        if (!block.any) continue;
      }
      __syncthreads();
      place_source(plan, block.plane, block.length[0], place.z, places);
      __syncthreads();
      load_tile<kLine>(plan, source_tile(plan, block, place.y, place.x), places, source_begin,
                       shared);
      __syncthreads();
      // All of it the same in all lanes of a warp.
      for_units(own_units, static_cast<const T*>(nullptr), count, own_list,
                [&](const Unit& unit, const T*) {
                  dispatch_unit<kLine>(unit, [&](auto rows, auto columns) {
                    constexpr int kCells = rows.value * columns.value;
                    T product[power_of_two(kCells)] = {};
                    for_products<kLine, rows.value, columns.value>(
                        patch + unit.offset, plan.pitch,
                        [&](int r, int c, int unit_row, int unit_column, T v) {
                          product[unit_column * rows.value + unit_row] += gradient[r][c] * v;
                        });
                    const T sum = sum_many<power_of_two(kCells)>(product, lane);
                    const int mine = lane / (kWarp / power_of_two(kCells));
                    if (lane % (kWarp / power_of_two(kCells)) == 0 && mine < kCells) {
                      own_sums[unit.first() + mine] += sum;
                    }
                  });
                });
    }

    __syncthreads();  // the sums of all warps are there
    const int slot_warps = plan.slot_threads / kWarp;
    if (bias != nullptr && block.leads && valid && own.index == 0) {
      T sum = T(0);
      for (int w = 0; w < slot_warps; ++w) sum += bias_sums[own.slot * slot_warps + w];
      bias[block.split * plan.target_channels + block.channel + own.slot] = sum;
    }
    const std::int64_t row = block.row + (valid ? own.slot * plan.source_per_group : 0);
    T* const to = partial + (block.split * plan.kernel_rows + row) * plan.cells + block.slab;
    const std::uint32_t* const own_cells = cells + list * plan.stage_cells;
    for (int i = own.index; i < cell_count; i += plan.slot_threads) {
      T sum = T(0);
      for (int w = 0; w < slot_warps; ++w)
        sum += sums[(own.slot * slot_warps + w) * stage_cells + i];
      const std::uint32_t cell = own_cells[i];
      const std::int64_t y = place.y.first + static_cast<std::int64_t>(cell >> 16) * place.y.step;
      const std::int64_t x =
          place.x.first + static_cast<std::int64_t>(cell & 0xffffu) * place.x.step;
      to[y * plan.axis[2].kernel_size + x] = sum;
    }
    __syncthreads();  // before the next item's sums
  }
}

inline constexpr int kFinishThreads = 256;

/// The gradient of a cell, counted through all kernel rows: the splits added in order; 0 where
/// nothing was asked for or nothing is read. again(cell) is the sum of what the cell reads alone:
/// in a tile, an input that is not finite also meets the zeros around the gradient of the output.
template <typename T, typename Again>
__device__ __forceinline__ T reduced_cell(const ConvPlan& plan, const T* partial,
                                          const std::uint8_t* support, std::int64_t cell,
                                          Again&& again) {
  bool computed = support == nullptr || support[cell] != 0;
  std::int64_t rest = cell;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    computed = computed && reads_source(plan.axis[d], rest % plan.axis[d].kernel_size);
    rest /= plan.axis[d].kernel_size;
  }
  T sum = T(0);
  if (computed) {
    for (std::int64_t split = 0; split < plan.splits; ++split) {
      sum += partial[split * plan.kernel_rows * plan.cells + cell];
    }
  }
  return sum == sum ? sum : again(cell);
}

template <typename Storage>
__global__ void __launch_bounds__(kFinishThreads, 2)
    conv_kernel_finish(const ConvArgs args, const ConvPlan plan, const Compute<Storage>* partial,
                       const std::uint8_t* support, const Storage* grad_output,
                       const Storage* input, Storage* grad_kernel) {
  const std::int64_t cells = plan.kernel_rows * plan.cells;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kFinishThreads;
  for (std::int64_t cell = static_cast<std::int64_t>(blockIdx.x) * kFinishThreads +
                           static_cast<std::int64_t>(threadIdx.x);
       cell < cells; cell += step) {
    const auto again = [&](std::int64_t at) {
      return exact::kernel_gradient(args, grad_output, input, at);
    };
    numeric::store(grad_kernel + cell, reduced_cell(plan, partial, support, cell, again));
  }
}

}  // namespace dcls::cuda
