#pragma once

// Calls with tensors that know their sizes: the functions of construct.hpp, conv.hpp, im2col.hpp
// and layer.hpp under the same names. Each tensor's element type and sizes are checked against the
// others', and std::invalid_argument names the one that does not fit.

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "dcls/construct.hpp"
#include "dcls/conv.hpp"
#include "dcls/im2col.hpp"
#include "dcls/layer.hpp"

namespace dcls {

/// The sizes of a tensor, the slowest axis first.
using Shape = std::vector<std::int64_t>;

/// The bits of a 16-bit number, for programs that have no type of their own for it.
enum class Float16Bits : std::uint16_t {};
enum class BFloat16Bits : std::uint16_t {};

/// The DType of a C++ type. Specialise it for a 16-bit type of yours:
/// `template <> struct dcls::DTypeOf<__half> : dcls::IsDType<dcls::DType::kFloat16> {};`
template <class T>
struct DTypeOf;
template <DType dtype>
using IsDType = std::integral_constant<DType, dtype>;
template <>
struct DTypeOf<float> : IsDType<DType::kFloat32> {};
template <>
struct DTypeOf<double> : IsDType<DType::kFloat64> {};
template <>
struct DTypeOf<Float16Bits> : IsDType<DType::kFloat16> {};
template <>
struct DTypeOf<BFloat16Bits> : IsDType<DType::kBFloat16> {};

/// Throws std::invalid_argument unless `count` values make a tensor of these sizes.
DCLS_API void check_count(std::size_t count, const Shape& shape);

/// A dense, row-major tensor that someone else owns. An empty view stands for no tensor.
template <class T>
class TensorView {
 public:
  TensorView() = default;
  /// As many values at `data` as the sizes say, on whatever device.
  TensorView(T* data, Shape shape) : data_(data), shape_(std::move(shape)) {}
  /// The values of a std::vector, std::array or the like.
  /// @throws std::invalid_argument unless there are as many as the sizes say.
  template <class Values, class = std::enable_if_t<
                              std::is_convertible_v<decltype(std::declval<Values&>().data()), T*>>>
  TensorView(Values& values, Shape shape) : TensorView(values.data(), std::move(shape)) {
    check_count(values.size(), shape_);
  }
  operator TensorView<const T>() const { return {data_, shape_}; }

  T* data() const { return data_; }
  const Shape& shape() const { return shape_; }

 private:
  T* data_ = nullptr;
  Shape shape_;
};
template <class T>
TensorView(T*, Shape) -> TensorView<T>;
template <class Values>
TensorView(Values&, Shape)
    -> TensorView<std::remove_pointer_t<decltype(std::declval<Values&>().data())>>;

/// A TensorView of any element type: what the functions take. Made from a view, or by hand where
/// the type is known at run time only.
template <class Void>
struct AnyTensorView {
  AnyTensorView() = default;
  AnyTensorView(Void* values, DType type, Shape sizes)
      : data(values), dtype(type), shape(std::move(sizes)) {}
  template <class T, class = std::enable_if_t<std::is_convertible_v<T*, Void*>>>
  AnyTensorView(const TensorView<T>& view)
      : AnyTensorView(view.data(), DTypeOf<std::remove_const_t<T>>::value, view.shape()) {}
  /// Any tensor that can be written can be read.
  template <class Other, class = std::enable_if_t<std::is_convertible_v<Other*, Void*>>>
  AnyTensorView(const AnyTensorView<Other>& other)
      : AnyTensorView(other.data, other.dtype, other.shape) {}

  /// Whether this is no tensor.
  bool empty() const { return data == nullptr && shape.empty(); }

  Void* data = nullptr;
  DType dtype = DType::kFloat32;
  Shape shape;
};
/// A tensor that a call reads, and one that it writes.
using InTensor = AnyTensorView<const void>;
using OutTensor = AnyTensorView<void>;

/// The arguments of construct() for these tensors, with the default sigma_min of the version.
///
/// @param weight   (rows..., elements). The rows may have several axes, as (out_channels,
///                 in_channels / groups).
/// @param position (ndim, rows..., elements).
/// @param sigma    as position; none if the version has no width.
/// @param size     of the kernel, one entry an axis.
/// @throws std::invalid_argument for a tensor of other sizes or another element type, as everything
///         here.
DCLS_API ConstructArgs construct_args(const InTensor& weight, const InTensor& position,
                                      const InTensor& sigma, const Shape& size,
                                      Version version = Version::kGauss);

/// Writes `kernel`, (rows..., size...).
DCLS_API void construct(const ConstructArgs& args, const OutTensor& kernel,
                        const Execution& where = {});
/// Writes the gradients that are there: `weight`, `position` and `sigma`, each of the sizes of the
/// tensor.
DCLS_API void construct_backward(const ConstructArgs& args, const InTensor& grad_kernel,
                                 const OutTensor& grad_weight, const OutTensor& grad_position,
                                 const OutTensor& grad_sigma = {}, const Execution& where = {});
/// Writes `support`, (rows..., size...).
DCLS_API void construct_support(const ConstructArgs& args, const TensorView<std::uint8_t>& support,
                                const Execution& where = {});

/// How a convolution moves over its input.
struct ConvOptions {
  Layout layout = Layout::kChannelsFirst;  ///< the sizes of a tensor stand in this order, too
  std::int64_t stride[kMaxDims] = {1, 1, 1};
  std::int64_t padding[kMaxDims] = {0, 0, 0};  ///< on both sides
  std::int64_t dilation[kMaxDims] = {1, 1, 1};
};

/// The arguments of direct_conv() for these tensors. groups and output_size follow from the sizes.
///
/// @param input  (N, I, input_size...), or (N, input_size..., I) if the options say so.
/// @param kernel the sizes of the kernel, (O, I / groups, kernel_size...).
DCLS_API ConvArgs conv_args(const InTensor& input, const Shape& kernel,
                            const ConvOptions& options = {});
/// The sizes of the output, in the layout of `args`.
DCLS_API Shape output_shape(const ConvArgs& args);

/// Writes `output`. bias: (O), or none. On a GPU the calls need a workspace, as in conv.hpp.
DCLS_API void direct_conv(const ConvArgs& args, const InTensor& input, const InTensor& kernel,
                          const InTensor& bias, const OutTensor& output,
                          const Execution& where = {}, void* workspace = nullptr);
/// Writes `grad_input`.
DCLS_API void direct_conv_backward_input(const ConvArgs& args, const InTensor& grad_output,
                                         const InTensor& kernel, const OutTensor& grad_input,
                                         const Execution& where = {}, void* workspace = nullptr);
/// Writes `grad_kernel` where `support`, of the same sizes, says so; everywhere without one.
DCLS_API void direct_conv_backward_kernel(const ConvArgs& args, const InTensor& grad_output,
                                          const InTensor& input,
                                          const TensorView<const std::uint8_t>& support,
                                          const OutTensor& grad_kernel, const Execution& where = {},
                                          void* workspace = nullptr);

/// Writes `output`. `saved` and `workspace` as in layer.hpp.
DCLS_API void layer_forward(const LayerArgs& args, const InTensor& input, const InTensor& bias,
                            const OutTensor& output, void* saved, const Execution& where = {},
                            void* workspace = nullptr);

/// The gradients of a layer to compute; none skips one.
struct LayerGradViews {
  OutTensor input;
  OutTensor bias;
  OutTensor weight;
  OutTensor position;
  OutTensor sigma;
};
/// Writes the gradients that are there.
DCLS_API void layer_backward(const LayerArgs& args, const InTensor& grad_output,
                             const InTensor& input, const LayerGradViews& grads, const void* saved,
                             const Execution& where = {}, void* workspace = nullptr);

/// The arguments of im2col() for these tensors, with the default sigma_min of the version.
///
/// @param input    (batch, channels, input_size...).
/// @param position (ndim, channels, elements), in float64 if input is, in float32 otherwise.
/// @param sigma    as position; none if the version has no width.
/// @param size     of the kernel, one entry an axis.
/// @param options  layout must be kChannelsFirst, and dilation 1.
DCLS_API Im2colArgs im2col_args(const InTensor& input, const InTensor& position,
                                const InTensor& sigma, const Shape& size,
                                Version version = Version::kGauss, const ConvOptions& options = {});
/// Writes `columns`, (batch, channels, elements, output_size...).
DCLS_API void im2col(const Im2colArgs& args, const OutTensor& columns, const Execution& where = {},
                     void* workspace = nullptr);
/// Writes `grad_input`, if there is one, and adds to `sums`, (parts, channels, elements, 1 + 2 *
/// ndim), if there are any. im2col_finish() of im2col.hpp makes the other gradients of them.
DCLS_API void im2col_backward(const Im2colArgs& args, const InTensor& grad_columns,
                              const OutTensor& grad_input, const OutTensor& sums,
                              const Execution& where = {}, void* workspace = nullptr);
/// Writes the gradients that are there, each of the sizes of the tensor.
DCLS_API void im2col_finish(const Im2colArgs& args, const InTensor& sums,
                            const OutTensor& grad_position, const OutTensor& grad_sigma = {},
                            const Execution& where = {}, void* workspace = nullptr);

}  // namespace dcls
