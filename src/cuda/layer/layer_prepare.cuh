#pragma once

// The first launch of a layer's forward pass: what construct_forward, construct_support_cells and
// the conv_list_units of all passes compute, with each tap evaluated once.

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/construct/construct_forward.cuh"
#include "cuda/conv/conv_units.cuh"
#include "cuda/layer/layer_plan.hpp"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

/// `value` as a tensor of `dtype`, which is computed in T, would hold it.
template <typename T>
__device__ __forceinline__ T rounded(DType dtype, T value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::kFloat16) {
      Half half;
      numeric::store(&half, value);
      return numeric::load(half);
    }
    if (dtype == DType::kBFloat16) {
      BFloat16 half;
      numeric::store(&half, value);
      return numeric::load(half);
    }
  }
  return value;
}

/// Writes `value` to a tensor of `dtype`, which is computed in T.
template <typename T>
__device__ __forceinline__ void store_as(DType dtype, void* to, std::int64_t index, T value) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::kFloat16) return numeric::store(static_cast<Half*>(to) + index, value);
    if (dtype == DType::kBFloat16) return numeric::store(static_cast<BFloat16*>(to) + index, value);
  }
  static_cast<T*>(to)[index] = value;
}

/// Builds the cells of the `rows` rows from `first` on, rounded as the convolution's dtype, and
/// marks their support.
template <typename Storage, int D>
__device__ __forceinline__ void build_rows(const LayerPrepare& job, std::int64_t first,
                                           std::int64_t rows, Compute<Storage>* cells) {
  using T = Compute<Storage>;
  auto* const bytes = dynamic_shared<unsigned char>();
  std::uint8_t* const lacks = job.support != nullptr ? bytes + job.lacks_at : nullptr;
  const std::int64_t first_cell = first * job.row_cells;
  const std::int64_t end = (first + rows) * job.points;
  for (std::int64_t row = first * job.points; row < end; row += job.boxes.rows) {
    const int count = static_cast<int>(end - row < job.boxes.rows ? end - row : job.boxes.rows);
    for (std::int64_t box = 0; box < job.boxes.boxes; ++box) {
      build_box<Storage, D, true>(job.construct, job.boxes, row, count, box, dynamic_shared<T>(),
                                  lacks, [&](std::int64_t cell, T value, bool marked) {
                                    cells[cell - first_cell] = rounded(job.dtype, value);
                                    if (job.saved_cells != nullptr) {
                                      store_as(job.dtype, job.saved_cells, cell, value);
                                    }
                                    if (lacks != nullptr) job.support[cell] = marked ? 1 : 0;
                                  });
    }
  }
}

/// Each block takes a group of rows: it builds their cells, then each of its warps lists a stage of
/// a row at a time.
template <typename Storage, int D>
__global__ void __launch_bounds__(kForwardThreads, 2) layer_prepare(const LayerPrepare job) {
  using T = Compute<Storage>;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t value_stages = job.values[0].plan.stages + job.values[1].plan.stages;
  const std::int64_t stages = value_stages + job.places.plan.stages;
  for (std::int64_t first = blockIdx.x * job.group; first < job.rows;
       first += gridDim.x * job.group) {
    const std::int64_t rows = job.rows - first < job.group ? job.rows - first : job.group;
    T* const cells = job.cells_in_shared
                         ? reinterpret_cast<T*>(dynamic_shared<unsigned char>() + job.cells_at)
                         : static_cast<T*>(job.cells) + first * job.row_cells;
    build_rows<Storage, D>(job, first, rows, cells);
    __syncthreads();
    for (std::int64_t task = warp; task < rows * stages; task += kForwardThreads / kWarp) {
      const std::int64_t row = task / stages;
      std::int64_t stage = task % stages;
      if (stage < value_stages) {
        const int pass = stage < job.values[0].plan.stages ? 0 : 1;
        if (pass == 1) stage -= job.values[0].plan.stages;
        const LayerLists& lists = job.values[pass];
        list_stage(lists.plan, list_row(lists.plan, first + row), stage,
                   static_cast<const T*>(cells + row * job.row_cells), lists.at.counts,
                   lists.at.units, static_cast<T*>(lists.at.packed));
      } else {
        const LayerLists& lists = job.places;
        const std::uint8_t* const marks = job.support + (first + row) * job.row_cells;
        list_stage(lists.plan, first + row, stage - value_stages, marks, lists.at.counts,
                   lists.at.units, static_cast<std::uint32_t*>(lists.at.packed));
      }
    }
    __syncthreads();  // the cells have been read
  }
}

}  // namespace dcls::cuda
