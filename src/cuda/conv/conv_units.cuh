#pragma once

// The lists of the direct convolution: which cells of the kernel there are, in units of up to 4
// rows and 2 columns. A value of the source that a thread has loaded serves all cells of a unit.

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/conv/conv_tile_plan.hpp"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

inline constexpr int kUnitRows = 4;
inline constexpr int kUnitColumns = 2;
inline constexpr int kListThreads = 128;

/// A block of neighbouring cells of a stage, and all of them count.
struct alignas(8) Unit {
  std::int32_t offset;  ///< of its first cell in the source's tile
  std::uint32_t code;   ///< rows | columns << 4 | first << 8

  __device__ __forceinline__ int rows() const { return static_cast<int>(code & 15u); }
  __device__ __forceinline__ int columns() const { return static_cast<int>(code >> 4 & 15u); }
  __device__ __forceinline__ int cells() const { return rows() * columns(); }
  /// Place of its cells in the packed list of the stage: column after column.
  __device__ __forceinline__ int first() const { return static_cast<int>(code >> 8); }
};

/// Whether a cell of the kernel, or of the support, counts. NaN does.
__device__ __forceinline__ bool is_set(float value) { return value != 0.0f; }
__device__ __forceinline__ bool is_set(double value) { return value != 0.0; }
__device__ __forceinline__ bool is_set(Half value) { return (value.bits & 0x7fffu) != 0; }
__device__ __forceinline__ bool is_set(BFloat16 value) { return (value.bits & 0x7fffu) != 0; }
__device__ __forceinline__ bool is_set(std::uint8_t value) { return value != 0; }

/// What is packed of a cell: its value for the passes that multiply by it; for the gradient of the
/// kernel its place, row << 16 | column in the stage.
template <typename T, typename Cell>
__device__ __forceinline__ T pack_cell(const Cell* cell, int, int, T*) {
  return numeric::load(*cell);
}
__device__ __forceinline__ std::uint32_t pack_cell(const std::uint8_t*, int y, int x,
                                                   std::uint32_t*) {
  return static_cast<std::uint32_t>(y) << 16 | static_cast<std::uint32_t>(x);
}

/// Makes one list: of the cells of stage `stage` that row `row` of the lists has. One warp does it,
/// with a lane for each column. It cuts columns into vertical runs, and joins equal runs of
/// neighbouring columns. `cells` points to the cells of the row. If it is null, no cell is left
/// out. The number of units goes to counts[list]. A list has room for stage_cells units.
template <typename Cell, typename Packed>
__device__ __forceinline__ void list_stage(const ConvPlan& plan, std::int64_t row,
                                           std::int64_t stage, const Cell* cells,
                                           std::int32_t* counts, Unit* units, Packed* packed) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned below = (1u << lane) - 1u;
  const std::int64_t list = row * plan.stages + stage;
  const std::int64_t width = plan.axis[2].kernel_size;
  const bool vertical = plan.axis[1].shift_step == 1;
  const bool horizontal = plan.axis[2].shift_step == 1;
  // A far step leads to no other cell of the stage: of such, a stage has one.
  const int pitch_y =
      plan.axis[1].chunk > 1 ? static_cast<int>(plan.axis[1].shift_step) * plan.pitch : 0;
  const int pitch_x = static_cast<int>(plan.axis[2].shift_step);
  const StageIndex at = stage_index(plan, stage);
  const StageAxis ay = stage_axis(plan.axis[1], plan.mirrored, at.class_y, at.chunk_y);
  const StageAxis ax = stage_axis(plan.axis[2], plan.mirrored, at.class_x, at.chunk_x);
  const Cell* const slab =
      cells == nullptr ? nullptr : cells + at.z * plan.axis[1].kernel_size * width;
  Unit* const own_units = units + list * plan.stage_cells;
  Packed* const own_packed = packed + list * plan.stage_cells;
  const int height = ax.count > 0 ? ay.count : 0;
  int unit_count = 0;
  int cell_count = 0;
  for (int x0 = 0; x0 < ax.count; x0 += kWarp) {
    const int x = x0 + lane;
    const bool inside = x < ax.count;
    const std::int64_t column = inside ? ax.first + x * ax.step : 0;
    const auto cell_at = [&](int y) { return slab + (ay.first + y * ay.step) * width + column; };
    int length = 0;  // of the run that ends above y
    for (int y0 = 0; y0 <= height; y0 += kWarp) {
      unsigned set = 0;  // of 32 cells of the column, loaded together
#pragma unroll 8
      for (int i = 0; i < kWarp && y0 + i < height; ++i) {
        if (inside && (slab == nullptr || is_set(*cell_at(y0 + i)))) set |= 1u << i;
      }
      for (int i = 0; i < kWarp && y0 + i <= height; ++i) {
        const int y = y0 + i;
        const bool here = (set >> i & 1u) != 0;
        const bool ends = length > 0 && (!here || length == kUnitRows || !vertical);
        if (__any_sync(kFullWarp, ends ? 1 : 0)) {
          // In a chain of equal runs, each second one joins the one before it.
          const int left = __shfl_up_sync(kFullWarp, ends ? length : 0, 1);
          const bool joins = ends && horizontal && lane > 0 && left == length;
          const unsigned joined = __ballot_sync(kFullWarp, joins ? 1 : 0);
          const unsigned starts = __ballot_sync(kFullWarp, ends && !joins ? 1 : 0);
          bool leads = false;
          if (ends) leads = (lane - highest_bit(starts & (below | 1u << lane))) % 2 == 0;
          const unsigned leaders = __ballot_sync(kFullWarp, leads ? 1 : 0);
          const bool wide = leads && lane < kWarp - 1 && (joined >> (lane + 1) & 1u) != 0;
          const int columns = wide ? 2 : 1;
          const int size = leads ? length * columns : 0;
          int before = 0;  // cells of the leaders to the left
          int all = 0;
#pragma unroll
          for (int bit = 0; bit < 4; ++bit) {
            const unsigned have = __ballot_sync(kFullWarp, size >> bit & 1);
            before += count_bits(have & below) << bit;
            all += count_bits(have) << bit;
          }
          if (leads) {
            const int first = cell_count + before;
            const int top = y - length;
            own_units[unit_count + count_bits(leaders & below)] = {
                top * pitch_y + x * pitch_x,
                static_cast<std::uint32_t>(length | columns << 4 | first << 8)};
            for (int c = 0; c < columns; ++c) {
              for (int r = 0; r < length; ++r) {
                const Cell* const cell = slab == nullptr ? nullptr : cell_at(top + r) + c * ax.step;
                own_packed[first + c * length + r] =
                    pack_cell(cell, top + r, x + c, static_cast<Packed*>(nullptr));
              }
            }
          }
          unit_count += count_bits(leaders);
          cell_count += all;
        }
        length = here ? (ends ? 1 : length + 1) : 0;
      }
    }
  }
  if (lane == 0) counts[list] = unit_count;
}

/// Makes all lists of a launch. Each of its rows has one list for each stage. `cells` points to the
/// cells of the whole kernel. If it is null, no cell is left out.
template <typename Cell, typename Packed>
__global__ void __launch_bounds__(kListThreads, 4)
    conv_list_units(const ConvPlan plan, const Cell* cells, std::int32_t* counts, Unit* units,
                    Packed* packed) {
  const std::int64_t lists = plan.list_rows * plan.stages;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * (kListThreads / kWarp);
  for (std::int64_t list =
           static_cast<std::int64_t>(blockIdx.x) * (kListThreads / kWarp) + threadIdx.x / kWarp;
       list < lists; list += step) {
    const std::int64_t row = list / plan.stages;
    std::int64_t target = plan.first_list_row + row;  // and its source:
    const std::int64_t n = geometry::take(target, plan.source_per_group);
    const Cell* const own =
        cells == nullptr ? nullptr : cells + kernel_row(plan, target, n) * plan.cells;
    list_stage(plan, row, list % plan.stages, own, counts, units, packed);
  }
}

}  // namespace dcls::cuda
