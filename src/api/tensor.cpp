// Tensors that know their sizes: checks them, and calls the functions that take pointers.

#include "dcls/tensor.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "api/check_args.hpp"
#include "core/checks.hpp"
#include "dcls/runtime.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {
namespace {

using validate::require;

/// The product of some sizes of the tensor `name`.
std::int64_t count(const std::string& name, Shape::const_iterator begin,
                   Shape::const_iterator end) {
  const std::string what = "the size of " + name;
  validate::Product product(what.c_str());
  std::int64_t values = 1;
  for (; begin != end; ++begin) {
    validate::check_range(what.c_str(), *begin, 0, std::numeric_limits<std::int64_t>::max());
    product.times(*begin);
    values *= *begin;
  }
  return values;
}

/// `expected` is that of the first tensor of a call.
void check_dtype(const char* name, DType got, DType expected) {
  for (const DType dtype : {expected, got}) {
    const auto number = static_cast<int>(dtype);
    require(number >= 0 && number < kDTypeCount, "the dtype of ",
            dtype == got ? name : "the tensors", " has no enumerator ", std::int64_t{number});
  }
  const auto names = dtypes();
  require(got == expected, name, " must be ", names[static_cast<std::size_t>(expected)].name,
          ", got ", names[static_cast<std::size_t>(got)].name);
}

/// The sizes must be `front`, then axes of `rows` in all, then `back`.
void check_rows(const char* name, const Shape& shape, Shape front, std::int64_t rows,
                const Shape& back) {
  bool fits = shape.size() > front.size() + back.size() &&
              std::equal(front.begin(), front.end(), shape.begin()) &&
              std::equal(back.rbegin(), back.rend(), shape.rbegin());
  fits = fits && count(name, shape.begin() + static_cast<std::ptrdiff_t>(front.size()),
                       shape.end() - static_cast<std::ptrdiff_t>(back.size())) == rows;
  front.push_back(rows);
  front.insert(front.end(), back.begin(), back.end());
  require(fits, name, " must have the sizes ", front, ", got ", shape);
}

void check_shape(const char* name, const Shape& shape, const Shape& expected) {
  require(shape == expected, name, " must have the sizes ", expected, ", got ", shape);
}

template <class Void>
void check_rows(const char* name, const AnyTensorView<Void>& tensor, DType dtype, Shape front,
                std::int64_t rows, const Shape& back) {
  check_dtype(name, tensor.dtype, dtype);
  check_rows(name, tensor.shape, std::move(front), rows, back);
}

template <class Void>
void check_tensor(const char* name, const AnyTensorView<Void>& tensor, DType dtype,
                  const Shape& expected) {
  check_dtype(name, tensor.dtype, dtype);
  check_shape(name, tensor.shape, expected);
}

Shape sizes(const std::int64_t (&from)[kMaxDims], int ndim) { return {from, from + ndim}; }

int check_axes(const char* name, std::size_t axes) {
  validate::check_range(name, static_cast<std::int64_t>(axes), 1, kMaxDims);
  return static_cast<int>(axes);
}

void copy(const Shape& from, std::int64_t (&to)[kMaxDims]) {
  std::copy(from.begin(), from.end(), to);
}

void check_parameter_grads(const ConstructArgs& args, const OutTensor& weight,
                           const OutTensor& position, const OutTensor& sigma) {
  const Shape elements = {args.elements};
  if (!weight.empty()) check_rows("grad_weight", weight, args.dtype, {}, args.rows, elements);
  const auto like_position = [&](const char* name, const OutTensor& tensor) {
    if (!tensor.empty()) check_rows(name, tensor, args.dtype, {args.ndim}, args.rows, elements);
  };
  like_position("grad_position", position);
  like_position("grad_sigma", sigma);
}

Shape with_channels(const ConvArgs& args, std::int64_t channels,
                    const std::int64_t (&points)[kMaxDims]) {
  Shape shape = sizes(points, args.ndim);
  shape.insert(args.layout == Layout::kChannelsLast ? shape.end() : shape.begin(), channels);
  shape.insert(shape.begin(), args.batch);
  return shape;
}

Shape input_shape(const ConvArgs& args) {
  return with_channels(args, args.in_channels, args.input_size);
}

Shape kernel_shape(const ConvArgs& args) {
  Shape shape = sizes(args.kernel_size, args.ndim);
  shape.insert(shape.begin(), {args.out_channels, args.in_channels / args.groups});
  return shape;
}

void check_bias(const ConvArgs& args, const char* name, const InTensor& bias) {
  if (!bias.empty()) check_tensor(name, bias, args.dtype, {args.out_channels});
}

DType position_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

Shape columns_shape(const Im2colArgs& args) {
  Shape shape = sizes(args.output_size, args.ndim);
  shape.insert(shape.begin(), {args.batch, args.channels, args.elements});
  return shape;
}

/// The parts of sums, (parts, channels, elements, 1 + 2 * ndim).
template <class Void>
std::int64_t check_sums(const Im2colArgs& args, const AnyTensorView<Void>& sums) {
  const std::int64_t parts = sums.shape.empty() ? 1 : sums.shape.front();
  check_tensor("sums", sums, position_dtype(args.dtype),
               {parts, args.channels, args.elements, 1 + 2 * args.ndim});
  return parts;
}

}  // namespace

void check_count(std::size_t values, const Shape& shape) {
  require(static_cast<std::int64_t>(values) == count("a view", shape.begin(), shape.end()),
          "a view of the sizes ", shape, " cannot have ", static_cast<std::int64_t>(values),
          " values");
}

ConstructArgs construct_args(const InTensor& weight, const InTensor& position,
                             const InTensor& sigma, const Shape& size, Version version) {
  ConstructArgs args;
  args.version = version;
  args.dtype = weight.dtype;
  args.ndim = check_axes("the number of entries of size", size.size());
  copy(size, args.size);
  require(weight.shape.size() >= 2, "weight must have the sizes (rows..., elements), got ",
          weight.shape);
  args.elements = weight.shape.back();
  args.rows = count("weight", weight.shape.begin(), weight.shape.end() - 1);
  const Shape elements = {args.elements};
  check_rows("position", position, args.dtype, {args.ndim}, args.rows, elements);
  if (!sigma.empty()) check_rows("sigma", sigma, args.dtype, {args.ndim}, args.rows, elements);
  args.weight = weight.data;
  args.position = position.data;
  args.sigma = sigma.data;
  return args;
}

void construct(const ConstructArgs& args, const OutTensor& kernel, const Execution& where) {
  api::checked_construct(args, where);
  check_rows("kernel", kernel, args.dtype, {}, args.rows, sizes(args.size, args.ndim));
  construct(args, kernel.data, where);
}

void construct_backward(const ConstructArgs& args, const InTensor& grad_kernel,
                        const OutTensor& grad_weight, const OutTensor& grad_position,
                        const OutTensor& grad_sigma, const Execution& where) {
  api::checked_construct(args, where);
  check_rows("grad_kernel", grad_kernel, args.dtype, {}, args.rows, sizes(args.size, args.ndim));
  check_parameter_grads(args, grad_weight, grad_position, grad_sigma);
  construct_backward(args, grad_kernel.data,
                     {grad_weight.data, grad_position.data, grad_sigma.data}, where);
}

void construct_support(const ConstructArgs& args, const TensorView<std::uint8_t>& support,
                       const Execution& where) {
  api::checked_construct(args, where, api::Weight::kNotRead);
  check_rows("support", support.shape(), {}, args.rows, sizes(args.size, args.ndim));
  construct_support(args, support.data(), where);
}

ConvArgs conv_args(const InTensor& input, const Shape& kernel, const ConvOptions& options) {
  validate::check_range("the number of axes of input",
                        static_cast<std::int64_t>(input.shape.size()), 3, kMaxDims + 2);
  validate::check_enum("layout", static_cast<int>(options.layout), 2);
  require(kernel.size() == input.shape.size(),
          "kernel must have as many axes as input, got the sizes ", kernel);
  ConvArgs args;
  args.dtype = input.dtype;
  args.layout = options.layout;
  args.ndim = static_cast<int>(input.shape.size()) - 2;
  const bool last = options.layout == Layout::kChannelsLast;
  args.batch = input.shape[0];
  args.in_channels = last ? input.shape.back() : input.shape[1];
  args.out_channels = kernel[0];
  require(kernel[1] > 0 ? args.in_channels % kernel[1] == 0 : args.in_channels == 0,
          "in_channels, ", args.in_channels, ", must be a multiple of the channels of kernel, ",
          kernel[1]);
  args.groups = kernel[1] > 0 ? std::max(args.in_channels / kernel[1], std::int64_t{1}) : 1;
  for (int d = 0; d < args.ndim; ++d) {
    args.input_size[d] = input.shape[static_cast<std::size_t>(last ? 1 + d : 2 + d)];
    args.kernel_size[d] = kernel[static_cast<std::size_t>(2 + d)];
    args.stride[d] = options.stride[d];
    args.padding[d] = options.padding[d];
    args.dilation[d] = options.dilation[d];
    args.output_size[d] =
        api::usual_output_size("kernel_size", d, args.input_size[d], args.kernel_size[d],
                               args.stride[d], args.padding[d], args.dilation[d]);
  }
  return args;
}

Shape output_shape(const ConvArgs& args) {
  api::check_conv(args, {});
  return with_channels(args, args.out_channels, args.output_size);
}

void direct_conv(const ConvArgs& args, const InTensor& input, const InTensor& kernel,
                 const InTensor& bias, const OutTensor& output, const Execution& where,
                 void* workspace) {
  api::check_conv(args, where);
  check_tensor("input", input, args.dtype, input_shape(args));
  check_tensor("kernel", kernel, args.dtype, kernel_shape(args));
  check_bias(args, "bias", bias);
  check_tensor("output", output, args.dtype, output_shape(args));
  direct_conv(args, input.data, kernel.data, bias.data, output.data, workspace, where);
}

void direct_conv_backward_input(const ConvArgs& args, const InTensor& grad_output,
                                const InTensor& kernel, const OutTensor& grad_input,
                                const Execution& where, void* workspace) {
  api::check_conv(args, where);
  check_tensor("grad_output", grad_output, args.dtype, output_shape(args));
  check_tensor("kernel", kernel, args.dtype, kernel_shape(args));
  check_tensor("grad_input", grad_input, args.dtype, input_shape(args));
  direct_conv_backward_input(args, grad_output.data, kernel.data, grad_input.data, workspace,
                             where);
}

void direct_conv_backward_kernel(const ConvArgs& args, const InTensor& grad_output,
                                 const InTensor& input,
                                 const TensorView<const std::uint8_t>& support,
                                 const OutTensor& grad_kernel, const Execution& where,
                                 void* workspace) {
  api::check_conv(args, where);
  check_tensor("grad_output", grad_output, args.dtype, output_shape(args));
  check_tensor("input", input, args.dtype, input_shape(args));
  if (support.data() != nullptr) check_shape("support", support.shape(), kernel_shape(args));
  check_tensor("grad_kernel", grad_kernel, args.dtype, kernel_shape(args));
  direct_conv_backward_kernel(args, grad_output.data, input.data, support.data(), grad_kernel.data,
                              workspace, where);
}

void layer_forward(const LayerArgs& args, const InTensor& input, const InTensor& bias,
                   const OutTensor& output, void* saved, const Execution& where, void* workspace) {
  api::checked_layer(args, where);
  check_tensor("input", input, args.conv.dtype, input_shape(args.conv));
  check_bias(args.conv, "bias", bias);
  check_tensor("output", output, args.conv.dtype, output_shape(args.conv));
  layer_forward(args, input.data, bias.data, output.data, saved, workspace, where);
}

void layer_backward(const LayerArgs& args, const InTensor& grad_output, const InTensor& input,
                    const LayerGradViews& grads, const void* saved, const Execution& where,
                    void* workspace) {
  api::checked_layer(args, where);
  check_tensor("grad_output", grad_output, args.conv.dtype, output_shape(args.conv));
  check_tensor("input", input, args.conv.dtype, input_shape(args.conv));
  if (!grads.input.empty()) {
    check_tensor("grad_input", grads.input, args.conv.dtype, input_shape(args.conv));
  }
  check_bias(args.conv, "grad_bias", grads.bias);
  check_parameter_grads(args.construct, grads.weight, grads.position, grads.sigma);
  layer_backward(
      args, grad_output.data, input.data,
      {grads.input.data, grads.bias.data, grads.weight.data, grads.position.data, grads.sigma.data},
      saved, workspace, where);
}

Im2colArgs im2col_args(const InTensor& input, const InTensor& position, const InTensor& sigma,
                       const Shape& size, Version version, const ConvOptions& options) {
  Im2colArgs args;
  args.version = version;
  args.dtype = input.dtype;
  args.ndim = check_axes("the number of entries of size", size.size());
  copy(size, args.size);
  require(options.layout == Layout::kChannelsFirst, "layout must be kChannelsFirst for im2col");
  require(input.shape.size() == size.size() + 2,
          "input must have the sizes (batch, channels, input_size...), got ", input.shape);
  require(position.shape.size() == 3,
          "position must have the sizes (ndim, channels, elements), got ", position.shape);
  args.batch = input.shape[0];
  args.channels = input.shape[1];
  args.elements = position.shape[2];
  const Shape expected = {args.ndim, args.channels, args.elements};
  check_tensor("position", position, position_dtype(args.dtype), expected);
  if (!sigma.empty()) check_tensor("sigma", sigma, position_dtype(args.dtype), expected);
  for (int d = 0; d < args.ndim; ++d) {
    validate::check_range({"dilation", d}, options.dilation[d], 1, 1);
    args.input_size[d] = input.shape[static_cast<std::size_t>(2 + d)];
    args.stride[d] = options.stride[d];
    args.padding[d] = options.padding[d];
    args.output_size[d] = api::usual_output_size("size", d, args.input_size[d], args.size[d],
                                                 args.stride[d], args.padding[d], 1);
  }
  args.input = input.data;
  args.position = position.data;
  args.sigma = sigma.data;
  return args;
}

void im2col(const Im2colArgs& args, const OutTensor& columns, const Execution& where,
            void* workspace) {
  api::checked_im2col(args, where);
  check_tensor("columns", columns, args.dtype, columns_shape(args));
  im2col(args, columns.data, workspace, where);
}

void im2col_backward(const Im2colArgs& args, const InTensor& grad_columns,
                     const OutTensor& grad_input, const OutTensor& sums, const Execution& where,
                     void* workspace) {
  api::checked_im2col(args, where);
  check_tensor("grad_columns", grad_columns, args.dtype, columns_shape(args));
  Im2colGrads grads;
  grads.input = grad_input.data;
  grads.sums = sums.data;
  if (!grad_input.empty()) {
    Shape shape = sizes(args.input_size, args.ndim);
    shape.insert(shape.begin(), {args.batch, args.channels});
    check_tensor("grad_input", grad_input, args.dtype, shape);
  }
  if (!sums.empty()) grads.parts = check_sums(args, sums);
  grads.sigma = interp::has_width(args.version);
  im2col_backward(args, grad_columns.data, grads, workspace, where);
}

void im2col_finish(const Im2colArgs& args, const InTensor& sums, const OutTensor& grad_position,
                   const OutTensor& grad_sigma, const Execution& where, void* workspace) {
  api::checked_im2col_elements(args, where);
  const std::int64_t parts = check_sums(args, sums);
  const Shape expected = {args.ndim, args.channels, args.elements};
  const DType dtype = position_dtype(args.dtype);
  if (!grad_position.empty()) check_tensor("grad_position", grad_position, dtype, expected);
  if (!grad_sigma.empty()) check_tensor("grad_sigma", grad_sigma, dtype, expected);
  im2col_finish(args, sums.data, parts, grad_position.data, grad_sigma.data, workspace, where);
}

}  // namespace dcls
