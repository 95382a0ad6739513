#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "dcls/export.hpp"
#include "dcls/types.hpp"

namespace dcls {

/// Order of the axes of the input and the output of a convolution in memory.
enum class Layout : int {
  kChannelsFirst = 0,  ///< (batch, channels, spatial...), torch's contiguous format
  kChannelsLast = 1    ///< (batch, spatial..., channels)
};

/// A convolution (cross-correlation, as in deep learning) with few non-zero cells in its kernel:
///
///   output[n, o, y] = bias[o] + sum_{i, r} kernel[o, i, r] * input[n, first(o) + i, x],
///   x_d = stride_d * y_d - padding_d + dilation_d * r_d,
///
/// where i runs over the in_channels / groups input channels of o's group, the first of which is
/// first(o), and the input is zero outside its bounds. Cells of the kernel that are zero are not
/// visited, so that an infinite input beside one gives no NaN, unlike a multiplication by zero.
///
/// On CUDA devices of compute capability 8.0 and later, float16 and bfloat16 problems that are
/// depthwise (one input and one output channel a group), of one or two axes, with stride and
/// dilation 1 and a kernel of 3 to 63 columns and up to 63 rows go to tensor cores, as dense
/// products with float32 sums. So do float32 problems of that kind that allow_tf32, on devices of
/// compute capability 8.0, 9.0 and 10, where a model has them faster: outputs wider than 8 points,
/// and in the channels-last layout kernels of 20 columns or more. The input, the kernel and the
/// gradient of the output are then rounded to TF32. Zero cells make no NaN there either: a value
/// that came out NaN is computed again without them.
///
/// output_size must be that of output_size() below, unless any_output_size is set: positions past
/// it read zeros too, which serves asymmetric padding. Every tensor must stay below 2^63 bytes, at
/// 8 a value.
struct ConvArgs {
  DType dtype = DType::kFloat32;
  Layout layout = Layout::kChannelsFirst;
  int ndim = 2;                   ///< number of spatial axes, 1 to 3; the first ndim entries count
  bool any_output_size = false;   ///< whether output_size may be another than the usual one
  std::int64_t batch = 0;         ///< N
  std::int64_t in_channels = 0;   ///< I, a multiple of groups
  std::int64_t out_channels = 0;  ///< O, a multiple of groups
  std::int64_t groups = 1;        ///< parts of the channels that are convolved apart, at least 1
  std::int64_t input_size[kMaxDims] = {1, 1, 1};   ///< points, 0 to 2^31
  std::int64_t output_size[kMaxDims] = {1, 1, 1};  ///< points, 0 to 2^31
  std::int64_t kernel_size[kMaxDims] = {1, 1, 1};  ///< cells, 1 to kMaxAxisSize
  std::int64_t stride[kMaxDims] = {1, 1, 1};       ///< 1 to kMaxAxisSize
  /// Zeros before the first input point, up to 2^31; a negative number crops as many points.
  std::int64_t padding[kMaxDims] = {0, 0, 0};
  std::int64_t dilation[kMaxDims] = {1, 1, 1};  ///< 1 to kMaxAxisSize
  /// Whether float32 may be rounded to TF32, 11 significant bits, where tensor cores are faster.
  bool allow_tf32 = false;
};

/// Points of the output on one axis, where padding is the same on both sides:
/// floor((input_size + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1.
/// @throws std::invalid_argument if an argument is out of the range that ConvArgs names, or if the
///         kernel reaches further than the padded input.
DCLS_API std::int64_t output_size(std::int64_t input_size, std::int64_t kernel_size,
                                  std::int64_t stride = 1, std::int64_t padding = 0,
                                  std::int64_t dilation = 1);

/// The passes of a convolution.
enum class ConvPass : int { kForward = 0, kBackwardInput = 1, kBackwardKernel = 2 };

/// Bytes of device memory, aligned to 256, that a pass needs as `workspace`; 0 on the CPU. In the
/// channels-last layout the gradient of the kernel on tensor cores copies its input and grad_output
/// there.
/// @throws std::invalid_argument if an argument is out of range.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
DCLS_API std::size_t direct_conv_workspace(const ConvArgs& args, ConvPass pass,
                                           const Execution& where);

/// Whether the CPU takes the images of the batch as the lanes of its vectors, in place of the
/// points of a row: on small maps and lines they fill them better. For callers who weigh methods.
/// @param vector_bytes 32 or 64, to ask about other processors; 0: of this one.
/// @throws std::invalid_argument if an argument is out of range.
DCLS_API bool direct_conv_takes_batch_as_lanes(const ConvArgs& args, std::int64_t vector_bytes = 0);

/// Writes the output of the convolution, (N, O, output_size...) in the layout of `args`.
///
/// Sums are taken in float32, or float64 for kFloat64. Results do not depend on the thread count.
/// @param input     (N, I, input_size...) in the layout of `args`.
/// @param kernel    (O, I / groups, kernel_size...), row-major.
/// @param bias      (O), or null.
/// @param workspace direct_conv_workspace(args, ConvPass::kForward, where) bytes, or null if 0.
/// @throws std::invalid_argument if an argument is out of range or a needed pointer is null.
/// @throws std::runtime_error if `where` asks for CUDA and the library was built without it.
/// @throws CudaError if a CUDA call fails.
DCLS_API void direct_conv(const ConvArgs& args, const void* input, const void* kernel,
                          const void* bias, void* output, void* workspace, const Execution& where);

/// The kernel of many forward passes on the CPU, all with the same arguments: its cells are listed
/// once, and not at each call. It copies the weights. Several threads may use one at a time.
class DCLS_API PreparedConv {
 public:
  /// @param kernel (O, I / groups, kernel_size...), row-major. It is not needed any more
  /// afterwards.
  /// @param where  on the CPU.
  /// @throws std::invalid_argument if an argument is out of range, `where` is not the CPU, or a
  ///         needed pointer is null.
  PreparedConv(const ConvArgs& args, const void* kernel, const Execution& where);
  PreparedConv(PreparedConv&&) noexcept;
  PreparedConv& operator=(PreparedConv&&) noexcept;
  ~PreparedConv();

  /// Writes what direct_conv writes with the arguments of the constructor. Throws as it does.
  void forward(const void* input, const void* bias, void* output, const Execution& where) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes the gradient of the input, (N, I, input_size...) in the layout of `args`, from that of
/// the output. Throws as direct_conv.
DCLS_API void direct_conv_backward_input(const ConvArgs& args, const void* grad_output,
                                         const void* kernel, void* grad_input, void* workspace,
                                         const Execution& where);

/// Writes the gradient of the kernel, (O, I / groups, kernel_size...), where `support`, of the same
/// shape, is not 0, and 0 elsewhere; null asks for every cell. A non-finite input or gradient may
/// spread to other cells of the same output channel. Throws as direct_conv.
DCLS_API void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output,
                                          const void* input, const std::uint8_t* support,
                                          void* grad_kernel, void* workspace,
                                          const Execution& where);

}  // namespace dcls
