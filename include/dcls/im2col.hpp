#pragma once

#include <cstdint>
#include <limits>

#include "dcls/types.hpp"

namespace dcls {

/// A stride that stands for that of a dense tensor. No caller computes this number.
inline constexpr std::int64_t kDenseStride = std::numeric_limits<std::int64_t>::min();

/// Columns of a convolution that samples its input at real-valued offsets and builds no kernel:
///
///   columns[n, i, k, o] = sum_x phi_{i,k}(x) * input[n, i, o * stride - padding + x],
///   x in {0..size[0]-1} x ... x {0..size[ndim-1]-1}
///
/// where phi_{i,k} is an element of weight 1 as `ConstructArgs` defines it, and the input is zero
/// outside of its size. The convolution's output is the product of the weights with the columns.
///
/// A part of the columns is a problem of its own: that of the outputs from r on, on axis d, has
/// padding[d] - r * stride[d]; that of some of the input's points has an `input` further on, a
/// smaller input_size and a correspondingly changed padding. Such a part sets any_output_size.
/// Every tensor must stay below 2^63 bytes, at 8 a value.
struct Im2colArgs {
  Version version = Version::kGauss;
  DType dtype = DType::kFloat32;  ///< of input, columns and their gradients
  int ndim = 2;                   ///< number of axes, 1 to 3
  bool any_output_size = false;   ///< as in ConvArgs: a part of the columns needs it
  /// Grid points of the kernel, per axis: 1 to kMaxAxisSize.
  std::int64_t size[kMaxDims] = {1, 1, 1};
  std::int64_t stride[kMaxDims] = {1, 1, 1};  ///< input steps between outputs, 1 to 2^30
  /// Zeros before the input, up to 2^31; a negative number crops as many points.
  std::int64_t padding[kMaxDims] = {0, 0, 0};
  std::int64_t input_size[kMaxDims] = {1, 1, 1};   ///< points of the input, 0 to 2^30
  std::int64_t output_size[kMaxDims] = {1, 1, 1};  ///< outputs, 1 to 2^30
  std::int64_t batch = 0;                          ///< items of `input`
  std::int64_t channels = 0;                       ///< of `input`
  std::int64_t elements = 0;                       ///< elements (K) of each channel
  /// Values between two items of the batch of `input`, and between two channels: at least 0.
  std::int64_t batch_stride = kDenseStride;
  std::int64_t channel_stride = kDenseStride;
  /// Added to |sigma|; finite and > 0 if there are widths. The default is that of the version.
  double sigma_min = kDefaultSigmaMin;
  const void* input = nullptr;  ///< (batch, channels, input_size...); the last axes are dense
  /// (ndim, channels, elements) in float32, or in float64 if `dtype` is; 0 is the grid's centre.
  const void* position = nullptr;
  const void* sigma = nullptr;  ///< as position; null if the version has no width
};

/// Bytes of device memory, aligned to 16, that the calls below need for themselves; 0 on the CPU,
/// where they allocate.
/// @throws as im2col.
DCLS_API std::int64_t im2col_workspace(const Im2colArgs& args, const Execution& where);

/// Writes the columns, (batch, channels, elements, output_size...), dense.
///
/// An element whose position is not finite has NaN columns. Nothing else depends on it. Results do
/// not depend on the thread count.
/// @throws std::invalid_argument if an argument is out of range or a needed pointer is null.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
/// @throws CudaError if a CUDA call fails.
DCLS_API void im2col(const Im2colArgs& args, void* columns, void* workspace,
                     const Execution& where);

/// Gradients to compute; null skips one.
struct Im2colGrads {
  /// Gradient of the input, overwritten; as `input`, with strides of its own. The elements that are
  /// not finite make that of their channel NaN.
  void* input = nullptr;
  /// As those of Im2colArgs, of this `input`, but at least a plane: planes must not overlap.
  std::int64_t batch_stride = kDenseStride;
  std::int64_t channel_stride = kDenseStride;
  /// Sums from which im2col_finish makes the gradients of position and sigma: (parts, channels,
  /// elements, 1 + 2 * ndim), in the dtype of position. They are added to: zero before the first
  /// part of a problem. The items n, n + parts, n + 2 * parts, ... of a batch make part n, so that
  /// results do not depend on the thread count.
  void* sums = nullptr;
  std::int64_t parts = 1;
  /// Whether the sums serve the gradient of sigma, too; false if the version has no width.
  bool sigma = false;
};

/// Gradients for `grad_columns`, as `columns`. Throws as im2col.
DCLS_API void im2col_backward(const Im2colArgs& args, const void* grad_columns,
                              const Im2colGrads& grads, void* workspace, const Execution& where);

/// Turns the sums of im2col_backward into the gradients of position and sigma, as these; null skips
/// one. Sub-gradients at the kinks are those of construct_backward. Reads of `args` version, dtype,
/// ndim, size, channels, elements, sigma_min, position and sigma. Throws as im2col.
DCLS_API void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                            void* grad_position, void* grad_sigma, void* workspace,
                            const Execution& where);

}  // namespace dcls
