#pragma once

// The support of the construct operator on CUDA: one thread per cell.

#include <cstdint>

#include "cuda/construct/construct_kernels.cuh"
#include "interpolation/interpolation.hpp"

namespace dcls::cuda {

inline constexpr int kSupportThreads = 256;

/// Axes on which an element has no tap at grid index `x`: 0 with a tap, 1 with a derivative only, 2
/// with neither.
template <typename T>
__device__ __forceinline__ int lacking(Version version, const Element<T>& e, T x) {
  Tap<T> tap{};
  interp::visit(version, [&](auto v) { tap = interp::evaluate<v.value>(e, x); });
  if (tap.value != T(0)) return 0;
  return tap.d_position != T(0) || tap.d_sigma != T(0) ? 1 : 2;
}

/// `cells` counts those of all rows. A cell is marked where an element lacks a tap on one axis at
/// most, and has a derivative there.
template <typename Storage, int D>
__global__ void __launch_bounds__(kSupportThreads)
    construct_support_cells(const ConstructArgs args, std::int64_t cells, std::uint8_t* support) {
  using T = Compute<Storage>;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kSupportThreads;
  for (std::int64_t cell = static_cast<std::int64_t>(blockIdx.x) * kSupportThreads +
                           static_cast<std::int64_t>(threadIdx.x);
       cell < cells; cell += step) {
    T x[D];
    std::int64_t row = cell;
#pragma unroll
    for (int d = D - 1; d >= 0; --d) {
      x[d] = static_cast<T>(row % args.size[d]);
      row /= args.size[d];
    }
    bool marked = false;
    for (std::int64_t k = 0; k < args.elements && !marked; ++k) {
      Element<T> elements[D];
#pragma unroll
      for (int d = 0; d < D; ++d) {
        elements[d] = load_element<Storage>(args, d, args.size[d], row * args.elements + k);
      }
      interp::spread_nan(elements);
      int missing = 0;
#pragma unroll
      for (int d = 0; d < D; ++d) missing += lacking(args.version, elements[d], x[d]);
      marked = missing <= 1;
    }
    support[cell] = marked ? 1 : 0;
  }
}

}  // namespace dcls::cuda
