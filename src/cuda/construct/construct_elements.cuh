#pragma once

// The elements of the construct operator, as its CUDA kernels load them.

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/runtime/primitives.cuh"
#include "dcls/construct.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::cuda {

using interp::Contraction;
using interp::Element;
using interp::Support;
using interp::Tap;

/// values[d] for a run-time d, by selection: an indexed array would live in local memory.
template <int D, typename T, int N>
__device__ __forceinline__ T pick(const T (&values)[N], int d) {
  T value = values[0];
#pragma unroll
  for (int i = 1; i < D; ++i) value = d == i ? values[i] : value;
  return value;
}

/// Place of element `index` (0 <= index < rows * elements) on axis `d` in positions and widths.
template <int D>
__device__ __forceinline__ std::int64_t position_at(const ConstructArgs& args, int d,
                                                    std::int64_t index) {
  return pick<D>(args.position_row, d) * args.rows * args.elements + index;
}

/// Loads element `index` on axis `d`, which has `size` points.
template <typename Storage, int D>
__device__ __forceinline__ Element<Compute<Storage>> load_element(const ConstructArgs& args, int d,
                                                                  std::int64_t size,
                                                                  std::int64_t index) {
  using T = Compute<Storage>;
  const std::int64_t at = position_at<D>(args, d, index);
  const T position = numeric::load(static_cast<const Storage*>(args.position)[at]);
  const T sigma =
      args.sigma != nullptr ? numeric::load(static_cast<const Storage*>(args.sigma)[at]) : T(0);
  return interp::make_element<T>(position, sigma, static_cast<T>(args.sigma_min), size);
}

}  // namespace dcls::cuda
