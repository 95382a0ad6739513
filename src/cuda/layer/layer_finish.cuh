#pragma once

// The last launch of a layer's backward pass: what conv_kernel_finish and construct_backward
// compute, and the gradient of the bias.

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/construct/construct_backward.cuh"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/layer/layer_prepare.cuh"

namespace dcls::cuda {

/// The gradient of a cell of the kernel, from the tensors.
template <typename T>
__device__ __forceinline__ T gradient_again(const LayerFinish& job, std::int64_t cell) {
  const auto from = [&](const auto* grad_output) {
    using Storage = std::remove_cv_t<std::remove_pointer_t<decltype(grad_output)>>;
    return exact::kernel_gradient(job.conv, static_cast<const Storage*>(job.grad_output),
                                  static_cast<const Storage*>(job.input), cell);
  };
  if constexpr (sizeof(T) == sizeof(float)) {
    if (job.dtype == DType::kFloat16) return from(static_cast<const Half*>(nullptr));
    if (job.dtype == DType::kBFloat16) return from(static_cast<const BFloat16*>(nullptr));
  }
  return from(static_cast<const T*>(nullptr));
}

/// The gradients of the elements of the `rows` rows from `first` on.
template <typename Storage, int D>
__device__ __forceinline__ void finish_rows(const LayerFinish& job, std::int64_t first,
                                            std::int64_t rows) {
  using T = Compute<Storage>;
  T* const partial = static_cast<T*>(job.partial);
  const std::int64_t first_cell = first * job.plan.cells;
  T* const cells = job.cells_in_shared
                       ? reinterpret_cast<T*>(dynamic_shared<unsigned char>() + job.cells_at)
                       : partial + first_cell;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x); i < rows * job.plan.cells;
       i += kBackwardThreads) {
    const auto again = [&](std::int64_t cell) { return gradient_again<T>(job, cell); };
    cells[i] =
        rounded(job.dtype, reduced_cell(job.plan, partial, job.support, first_cell + i, again));
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kGroupLanes;
  T* const stored =
      job.taps.entries > 0 ? dynamic_shared<T>() + 3 * group * job.taps.entries : nullptr;
  const std::int64_t begin = first * job.points * job.construct.elements;
  const std::int64_t count = rows * job.points * job.construct.elements;
  const std::int64_t row_cells = job.plan.cells / job.points;
  // The trip count is that of the whole block: every lane takes part in the sums.
  for (std::int64_t k = 0; k < count; k += kBackwardGroups) {
    const T* const grad = cells + (k + group) / job.construct.elements * row_cells;
    element_gradient<Storage, D>(job.construct, begin + k + group, k + group < count, grad, stored,
                                 job.grads);
  }
  __syncthreads();  // the cells have been read
}

/// Adds the splits of a channel's sums in order.
template <typename T>
__device__ __forceinline__ void finish_bias(const LayerFinish& job, std::int64_t channel) {
  if (channel >= job.channels) return;
  T sum = T(0);
  for (std::int64_t split = 0; split < job.plan.splits; ++split) {
    sum += static_cast<const T*>(job.bias_sums)[split * job.channels + channel];
  }
  store_as(job.dtype, job.bias, channel, sum);
}

/// The first blocks take a group of rows each, the others kBackwardThreads channels of the bias.
template <typename Storage, int D>
__global__ void __launch_bounds__(kBackwardThreads, 4)
    layer_finish(const LayerFinish job, std::int64_t row_blocks, std::int64_t blocks) {
  for (std::int64_t item = blockIdx.x; item < blocks; item += gridDim.x) {
    if (item < row_blocks) {
      const std::int64_t first = item * job.group;
      const std::int64_t rows = job.rows - first < job.group ? job.rows - first : job.group;
      finish_rows<Storage, D>(job, first, rows);
    } else {
      finish_bias<Compute<Storage>>(job, (item - row_blocks) * kBackwardThreads + threadIdx.x);
    }
  }
}

}  // namespace dcls::cuda
