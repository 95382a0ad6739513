#pragma once

#include <cstdint>

#include "dcls/types.hpp"

namespace dcls {

/// The dense-kernel construction of DCLS:
///
///   kernel[row, x] = sum_k weight[row, k] * phi_k(x),   x in {0..size[0]-1} x ... x
///   {0..size[ndim-1]-1}
///
/// where phi_k is the product over the axes of the version's taps around
/// p_d = position[position_row[d], row, k] + size[d] / 2, with the width
/// sigma_d = |sigma[position_row[d], row, k]| + sigma_min, in normalised versions divided by its
/// sum over the grid + 1e-7. A kGauss tap below 1e-10 (float64: 3e-20) of the largest of its axis
/// counts as 0, and so does a subnormal number in a kernel: neither can change a result, and both
/// would slow convolutions.
///
/// All tensors are dense, row-major, of one dtype, on one device. A "row" is whatever shares a
/// dense kernel: an (output channel, input channel) pair for a convolution.
struct ConstructArgs {
  Version version = Version::kGauss;
  DType dtype = DType::kFloat32;
  int ndim = 2;                             ///< number of learnable axes, 1 to 3
  std::int64_t size[kMaxDims] = {1, 1, 1};  ///< grid points per axis; the first ndim count
  std::int64_t rows = 0;                    ///< number of dense kernels
  std::int64_t elements = 0;                ///< kernel elements (K) in each of them
  /// Added to |sigma|; finite and > 0 if there are widths. The default is that of the version.
  double sigma_min = kDefaultSigmaMin;
  /// The row of `position` and `sigma` that belongs to each axis: a permutation of 0 ... ndim - 1.
  int position_row[kMaxDims] = {0, 1, 2};
  const void* weight = nullptr;    ///< (rows, elements)
  const void* position = nullptr;  ///< (ndim, rows, elements), 0 is the grid's centre
  const void* sigma = nullptr;     ///< (ndim, rows, elements); null if the version has no width
};

/// Writes the dense kernels, (rows, size[0], ..., size[ndim-1]), to `kernel`.
///
/// A non-finite position gives NaN in the whole row. Results do not depend on the thread count.
/// @throws std::invalid_argument if an argument is out of range or a needed pointer is null.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
/// @throws CudaError if a CUDA call fails.
DCLS_API void construct(const ConstructArgs& args, void* kernel, const Execution& where);

/// Gradients to compute; null skips one.
struct ConstructGrads {
  void* weight = nullptr;    ///< (rows, elements)
  void* position = nullptr;  ///< (ndim, rows, elements)
  void* sigma = nullptr;     ///< (ndim, rows, elements); null if the version has no width
};

/// Contracts `grad_kernel`, (rows, size...), with the derivatives of `construct`, in one pass.
///
/// Sub-gradients at the kinks: kV0 is right-sided; kV1 is 0 at delta = 0 and |delta| = 1; kMax is 0
/// at delta = 0 and |delta| = sigma; the derivative of |sigma| at 0 is 0. Throws as `construct`.
DCLS_API void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                                 const ConstructGrads& grads, const Execution& where);

/// Marks the cells that matter to training: writes 1 to `support`, (rows, size...), where an
/// element of the row has a non-zero tap or a non-zero derivative of it by position or width, 0
/// elsewhere.
///
/// Outside of it the gradient of the kernel cannot reach weights, positions or widths, whatever the
/// weights are: args.weight is not read and may be null. A non-finite position marks its whole row.
/// Throws as `construct`.
DCLS_API void construct_support(const ConstructArgs& args, std::uint8_t* support,
                                const Execution& where);

}  // namespace dcls
