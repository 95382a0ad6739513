#pragma once

// The support of the construct operator on CUDA: one thread per cell.

#include <cstdint>

#include "cuda/construct/construct_elements.cuh"

namespace dcls::cuda {

inline constexpr int kSupportThreads = 256;

/// `cells` counts those of all rows.
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
        elements[d] = load_element<Storage, D>(args, d, args.size[d], row * args.elements + k);
      }
      interp::spread_nan(elements);
      int missing = 0;
#pragma unroll
      for (int d = 0; d < D; ++d) {
        missing += lacks_tap(evaluate_tap(args.version, elements[d], x[d]));
      }
      marked = missing <= 1;
    }
    support[cell] = marked ? 1 : 0;
  }
}

}  // namespace dcls::cuda
