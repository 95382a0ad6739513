#pragma once

// The elements of the construct operator, as its CUDA kernels load them.

#include <cstdint>

#include "core/dtype.hpp"
#include "core/parameter.hpp"
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
  return interp::make_element<T>(position, sigma, numeric::parameter<T>(args.sigma_min), size);
}

/// The tap of an element at grid index `x`, of a version known at run time.
template <typename T>
__device__ __forceinline__ Tap<T> evaluate_tap(Version version, const Element<T>& e, T x) {
  Tap<T> tap{};
  interp::visit(version, [&](auto v) { tap = interp::evaluate<v.value>(e, x); });
  return tap;
}

/// Whether an axis lacks a tap at a grid point: 0 with a tap, 1 with a derivative only, 2 with
/// neither. A cell belongs to the support of an element if its axes lack 1 in all, at most.
template <typename T>
__device__ __forceinline__ int lacks_tap(const Tap<T>& tap) {
  if (tap.value != T(0)) return 0;
  return tap.d_position != T(0) || tap.d_sigma != T(0) ? 1 : 2;
}

/// 0, or NaN if the position of element `index` is not finite on some axis.
template <typename Storage, int D>
__device__ __forceinline__ Compute<Storage> position_poison(const ConstructArgs& args,
                                                            std::int64_t index) {
  Compute<Storage> poison = 0;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    const auto p =
        numeric::load(static_cast<const Storage*>(args.position)[position_at<D>(args, d, index)]);
    poison += p - p;
  }
  return poison;
}

/// Adds tap (of the axis `axis`) times the contraction `inner` of the axes before it to `sum`.
template <typename T, int D>
__device__ __forceinline__ void add_axis(Contraction<T, D>& sum, int axis, const Tap<T>& tap,
                                         const Contraction<T, D>& inner) {
  sum.value += tap.value * inner.value;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    if (d == axis) {
      sum.d_position[d] += tap.d_position * inner.value;
      sum.d_sigma[d] += tap.d_sigma * inner.value;
    } else {
      sum.d_position[d] += tap.value * inner.d_position[d];
      sum.d_sigma[d] += tap.value * inner.d_sigma[d];
    }
  }
}

}  // namespace dcls::cuda
