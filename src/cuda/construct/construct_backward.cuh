#pragma once

// The gradients of the construct operator on CUDA.

#include <cstdint>

#include "cuda/construct/construct_elements.cuh"
#include "cuda/construct/construct_plan.hpp"

namespace dcls::cuda {

/// One axis of one element: taps at grid points, from shared memory or computed.
template <typename T>
struct AxisReader {
  Element<T> element;
  Support support;
  Version version;
  const T* stored;  ///< value, d_position, d_sigma of each grid point; null to compute

  __device__ __forceinline__ Tap<T> compute(std::int64_t x) const {
    return evaluate_tap(version, element, static_cast<T>(x));
  }
  __device__ __forceinline__ Tap<T> operator()(std::int64_t x) const {
    if (stored == nullptr) return compute(x);
    const T* const at = stored + 3 * x;
    return {at[0], at[1], at[2]};
  }
};

template <typename T>
__device__ __forceinline__ void add_product(Tap<T>& sum, const Tap<T>& tap, T factor) {
  sum.value += tap.value * factor;
  sum.d_position += tap.d_position * factor;
  sum.d_sigma += tap.d_sigma * factor;
}

/// Contracts the axes from kAxis to the last but one at one point of the last axis. `grad` is at
/// that point of the last axis, `stride` the distance between neighbours on the axis before it.
template <int kAxis, typename Grad, typename T, int D>
__device__ __forceinline__ Contraction<T, D> contract(const AxisReader<T> (&axes)[D],
                                                      const Grad* grad,
                                                      const std::int64_t (&strides)[D]) {
  Contraction<T, D> sum{};
  if constexpr (kAxis == D - 1) {
    sum.value = numeric::load(*grad);
  } else {
    for (std::int64_t x = axes[kAxis].support.lo; x < axes[kAxis].support.hi; ++x) {
      const Contraction<T, D> inner =
          contract<kAxis + 1, Grad, T, D>(axes, grad + x * strides[kAxis], strides);
      add_axis<T, D>(sum, kAxis, axes[kAxis](x), inner);
    }
  }
  return sum;
}

/// The gradients of element `index` (0 <= index < rows * elements), by kGroupLanes lanes together;
/// all lanes of the warp take part, and those without an element are not active.
///
/// @param grad   Gradient of the cells of the element's row, in the dtype of the kernel or wider.
/// @param stored Room for the taps of the group, 3 * plan.entries values; null for none.
template <typename Storage, int D, typename Grad>
__device__ __forceinline__ void element_gradient(const ConstructArgs& args, std::int64_t index,
                                                 bool active, const Grad* grad,
                                                 Compute<Storage>* stored,
                                                 const ConstructGrads& grads) {
  using T = Compute<Storage>;
  const bool normalised = interp::is_normalised(args.version);
  const int lane = static_cast<int>(threadIdx.x) % kGroupLanes;
  std::int64_t strides[D];
  std::int64_t cells = 1;
#pragma unroll
  for (int d = D - 1; d >= 0; --d) {
    strides[d] = cells;
    cells *= args.size[d];
  }
  AxisReader<T> axes[D];
  Tap<T> sums[D];
  Element<T> elements[D] = {};
  if (active) {
#pragma unroll
    for (int d = 0; d < D; ++d) {
      elements[d] = load_element<Storage, D>(args, d, args.size[d], index);
    }
    interp::spread_nan(elements);
  }
  int offset = 0;
  __syncwarp();  // the taps of the last element have been read
#pragma unroll
  for (int d = 0; d < D; ++d) {
    axes[d].element = elements[d];
    axes[d].version = args.version;
    axes[d].support = {0, 0};
    T* const keep = d < D - 1 && stored != nullptr ? stored + 3 * offset : nullptr;
    axes[d].stored = keep;
    offset += static_cast<int>(args.size[d]);
    Tap<T> part{};
    if (active) {
      interp::dispatch_version(args.version, [&](auto v) {
        axes[d].support = interp::support<v.value>(axes[d].element, args.size[d]);
      });
      for (std::int64_t x = axes[d].support.lo + lane; x < axes[d].support.hi; x += kGroupLanes) {
        const Tap<T> tap = axes[d].compute(x);
        add_product(part, tap, T(1));
        if (keep != nullptr) {
          T* const at = keep + 3 * x;
          at[0] = tap.value;
          at[1] = tap.d_position;
          at[2] = tap.d_sigma;
        }
      }
    }
    sums[d].value = group_sum<kGroupLanes>(part.value);
    sums[d].d_position = group_sum<kGroupLanes>(part.d_position);
    sums[d].d_sigma = group_sum<kGroupLanes>(part.d_sigma);
  }
  __syncwarp();

  Contraction<T, D> c{};
  if (active) {
    const AxisReader<T>& last = axes[D - 1];
    for (std::int64_t x = last.support.lo + lane; x < last.support.hi; x += kGroupLanes) {
      const Contraction<T, D> inner = contract<0, Grad, T, D>(axes, grad + x, strides);
      add_axis<T, D>(c, D - 1, last.compute(x), inner);
    }
  }
  c.value = group_sum<kGroupLanes>(c.value);
#pragma unroll
  for (int d = 0; d < D; ++d) {
    c.d_position[d] = group_sum<kGroupLanes>(c.d_position[d]);
    c.d_sigma[d] = group_sum<kGroupLanes>(c.d_sigma[d]);
  }
  if (!active || lane != 0) return;

  interp::finish_gradient<T, D>(
      c, sums, numeric::load(static_cast<const Storage*>(args.weight)[index]), normalised);
  if (grads.weight != nullptr) {
    numeric::store(static_cast<Storage*>(grads.weight) + index, c.value);
  }
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const std::int64_t at = position_at<D>(args, d, index);
    if (grads.position != nullptr) {
      numeric::store(static_cast<Storage*>(grads.position) + at, c.d_position[d]);
    }
    if (grads.sigma != nullptr) {
      const T slope =
          interp::sigma_slope<T>(numeric::load(static_cast<const Storage*>(args.sigma)[at]));
      numeric::store(static_cast<Storage*>(grads.sigma) + at, c.d_sigma[d] * slope);
    }
  }
}

template <typename Storage, int D>
__global__ void __launch_bounds__(kBackwardThreads)
    construct_backward(const ConstructArgs args, const BackwardPlan plan, const void* grad_kernel,
                       const ConstructGrads grads) {
  const int group = static_cast<int>(threadIdx.x) / kGroupLanes;
  auto* const stored =
      plan.entries > 0 ? dynamic_shared<Compute<Storage>>() + 3 * group * plan.entries : nullptr;
  std::int64_t cells = 1;
#pragma unroll
  for (int d = 0; d < D; ++d) cells *= args.size[d];
  // The trip count is that of the whole block: every lane takes part in the sums.
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kBackwardGroups;
       first < plan.items; first += static_cast<std::int64_t>(gridDim.x) * kBackwardGroups) {
    const std::int64_t index = first + group;
    const Storage* const grad =
        static_cast<const Storage*>(grad_kernel) + index / args.elements * cells;
    element_gradient<Storage, D>(args, index, index < plan.items, grad, stored, grads);
  }
}

}  // namespace dcls::cuda
