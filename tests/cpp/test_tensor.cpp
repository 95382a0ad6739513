// Tensors that know their sizes: same results as with pointers, and what does not fit is refused.
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "dcls/tensor.hpp"

namespace {

using namespace dcls;
using Values = std::vector<float>;

/// A depthwise layer of two channels: kernels of 3 x 5, two elements each.
struct Problem {
  Values weight = {1, -2, 3, 0.5F};
  Values position = {-0.75F, 1, 0.25F, 0, 1.5F, -2, 0.5F, 1.25F};
  Values sigma = Values(8, 0.4F);
  Values input = Values(2 * 2 * 6 * 7);
  Values kernel = Values(2 * 3 * 5), output = Values(2 * 2 * 6 * 4);
  Shape kernel_shape = {2, 1, 3, 5};
  ConvOptions options;

  Problem() {
    for (std::size_t i = 0; i < input.size(); ++i) input[i] = static_cast<float>(i % 11) / 4 - 1;
    options.padding[0] = 1;
    options.padding[1] = 2;
    options.stride[1] = 2;
  }
  TensorView<float> view(Values& values, Shape shape) const { return {values, std::move(shape)}; }
  TensorView<float> input_view() { return view(input, {2, 2, 6, 7}); }
  ConstructArgs building() {
    return construct_args(view(weight, {2, 1, 2}), view(position, {2, 2, 1, 2}),
                          view(sigma, {2, 2, 1, 2}), {3, 5});
  }
  ConvArgs convolving() { return conv_args(input_view(), kernel_shape, options); }
  LayerArgs layer() {
    LayerArgs args{building(), convolving()};
    args.for_input = args.for_parameters = true;
    return args;
  }
};

TEST(views_know_their_type_and_sizes) {
  Values some(6);
  const Values fixed(6);
  const TensorView made(some, {2, 3});
  static_assert(std::is_same_v<decltype(made), const TensorView<float>>);
  static_assert(std::is_same_v<decltype(TensorView(fixed, {6})), TensorView<const float>>);
  static_assert(!std::is_convertible_v<TensorView<const float>, OutTensor>);
  static_assert(std::is_convertible_v<TensorView<float>, InTensor>);
  CHECK(made.data() == some.data());
  CHECK_EQ(made.shape().size(), 2u);
  CHECK(InTensor().empty() && !InTensor(made).empty());
  CHECK(InTensor(TensorView<Float16Bits>()).dtype == DType::kFloat16);
  CHECK(InTensor(TensorView<const BFloat16Bits>()).dtype == DType::kBFloat16);
  CHECK(InTensor(TensorView<double>()).dtype == DType::kFloat64);
  CHECK_THROWS(std::invalid_argument, "sizes (2, 4) cannot have 6 values",
               (TensorView(some, {2, 4})));
  CHECK_THROWS(std::invalid_argument, "size of a view must be between 0",
               (TensorView(some, {-2, -3})));
}

TEST(defaults_are_valid) {
  CHECK_CLOSE(default_sigma_min(Version::kGauss), 0.27, 0, 0);
  CHECK_CLOSE(default_sigma_min(Version::kMax), 1.0, 0, 0);
  for (const Version version : {Version::kV0, Version::kV1, Version::kSpline}) {
    CHECK_CLOSE(default_sigma_min(version), 0.0, 0, 0);
  }
  float number = 1;
  const InTensor wild(&number, static_cast<DType>(1 << 28), {1, 1, 1});
  CHECK_THROWS(std::invalid_argument, "the dtype of the tensors has no enumerator",
               construct_args(wild, {&number, DType::kFloat32, {1, 1, 1, 1}}, {}, {3}));
  CHECK_THROWS(std::invalid_argument, "version", default_sigma_min(static_cast<Version>(-1)));
  construct({}, static_cast<void*>(nullptr), {});
  CHECK_EQ(im2col_workspace({}, {}), 0);
  CHECK_EQ(layer_saved({}, {}), 0u);
  float one = 1;
  ConvArgs conv;
  conv.batch = conv.in_channels = conv.out_channels = 1;
  direct_conv(conv, &one, &one, nullptr, &one, nullptr, {});
  Im2colArgs columns;
  float value = 0;
  columns.batch = columns.channels = columns.elements = 1;
  const float position[] = {0, 0}, sigma[] = {1, 1};
  columns.input = &one;
  columns.position = position;
  columns.sigma = sigma;
  im2col(columns, &value, nullptr, {});
  CHECK_CLOSE(value, 1.0, 1e-5, 0);
}

TEST(the_default_sigma_min_is_that_of_the_version) {
  for (const Version version : {Version::kGauss, Version::kMax}) {
    Problem problem;
    ConstructArgs args = problem.building();
    args.version = version;
    Values implied(30), written(30);
    construct(args, implied.data(), {});
    args.sigma_min = default_sigma_min(version);
    construct(args, written.data(), {});
    CHECK_SAME_BITS(implied, written);
  }
}

TEST(the_output_size) {
  CHECK_EQ(output_size(7, 5), 3);
  CHECK_EQ(output_size(7, 5, 2, 2), 4);
  CHECK_EQ(output_size(9, 3, 1, 0, 4), 1);
  CHECK_THROWS(std::invalid_argument, "kernel_size reaches over 9 points",
               output_size(8, 3, 1, 0, 4));
  CHECK_THROWS(std::invalid_argument, "stride must be", output_size(8, 3, 0));
  CHECK_THROWS(std::invalid_argument, "input_size must be", output_size(-1, 3));
  CHECK_THROWS(std::invalid_argument, "kernel_size must be", output_size(8, 0));
  CHECK_THROWS(std::invalid_argument, "padding must be", output_size(8, 3, 1, INT64_MAX));
  CHECK_THROWS(std::invalid_argument, "dilation must be", output_size(8, 3, 1, 0, -1));
  Problem problem;
  const ConvArgs conv = problem.convolving();
  CHECK_EQ(conv.groups, 2);
  CHECK(output_shape(conv) == (Shape{2, 2, 6, 4}));
  problem.options.layout = Layout::kChannelsLast;
  const ConvArgs last =
      conv_args(problem.view(problem.input, {2, 6, 7, 2}), {2, 1, 3, 5}, problem.options);
  CHECK(output_shape(last) == (Shape{2, 6, 4, 2}));
  // With pointers, too, unless it is asked for.
  ConvArgs free = conv;
  free.output_size[1] = 3;
  const auto call = [&] {
    direct_conv(free, problem.input.data(), problem.kernel.data(), nullptr, problem.output.data(),
                nullptr, {});
  };
  CHECK_THROWS(std::invalid_argument, "output_size[1] must be 4, unless any_output_size", call());
  free.any_output_size = true;
  call();
  Im2colArgs columns;
  columns.output_size[1] = 2;
  CHECK_THROWS(std::invalid_argument, "output_size[1] must be 1, unless any_output_size",
               im2col(columns, static_cast<void*>(nullptr), nullptr, {}));
}

TEST(same_results_as_with_pointers) {
  Problem p;
  const ConstructArgs build = p.building();
  const ConvArgs conv = p.convolving();
  const auto kernel = p.view(p.kernel, p.kernel_shape);
  const auto output = p.view(p.output, output_shape(conv));
  construct(build, kernel);
  direct_conv(conv, p.input_view(), kernel, {}, output);
  Values plain_kernel(p.kernel.size()), plain_output(p.output.size());
  construct(build, plain_kernel.data(), {});
  direct_conv(conv, p.input.data(), plain_kernel.data(), nullptr, plain_output.data(), nullptr, {});
  CHECK_SAME_BITS(p.kernel, plain_kernel);
  CHECK_SAME_BITS(p.output, plain_output);

  std::vector<std::uint8_t> support(p.kernel.size());
  construct_support(build, TensorView(support, p.kernel_shape));
  Values grad_input(p.input.size()), grad_kernel(p.kernel.size()), grad_weight(4), grad_position(8),
      grad_sigma(8);
  direct_conv_backward_input(conv, output, kernel, p.view(grad_input, {2, 2, 6, 7}));
  direct_conv_backward_kernel(conv, output, p.input_view(), TensorView(support, p.kernel_shape),
                              p.view(grad_kernel, p.kernel_shape));
  construct_backward(build, p.view(grad_kernel, p.kernel_shape), p.view(grad_weight, {2, 1, 2}),
                     p.view(grad_position, {2, 2, 1, 2}), p.view(grad_sigma, {2, 2, 1, 2}));

  // The whole layer in one call each way.
  const LayerArgs layer = p.layer();
  std::vector<char> saved(layer_saved(layer, {}));
  Values layer_output(p.output.size()), layer_input(p.input.size()), weight(4), position(8),
      sigma(8);
  layer_forward(layer, p.input_view(), {}, p.view(layer_output, output_shape(conv)), saved.data());
  CHECK_SAME_BITS(p.output, layer_output);
  LayerGradViews grads;
  grads.input = p.view(layer_input, {2, 2, 6, 7});
  grads.weight = p.view(weight, {2, 1, 2});
  grads.position = p.view(position, {2, 2, 1, 2});
  grads.sigma = p.view(sigma, {2, 2, 1, 2});
  layer_backward(layer, output, p.input_view(), grads, saved.data());
  CHECK_SAME_BITS(grad_input, layer_input);
  CHECK_SAME_BITS(grad_weight, weight);
  CHECK_SAME_BITS(grad_position, position);
  CHECK_SAME_BITS(grad_sigma, sigma);
}

TEST(im2col_has_views_too) {
  Problem p;
  const Im2colArgs args =
      im2col_args(p.input_view(), p.view(p.position, {2, 2, 2}), p.view(p.sigma, {2, 2, 2}), {3, 5},
                  Version::kGauss, p.options);
  Values columns(2 * 2 * 2 * 6 * 4), plain(columns.size()), grad_input(p.input.size()),
      sums(2 * 2 * 5), grad_position(8), grad_sigma(8);
  const Shape shape = {2, 2, 2, 6, 4};
  im2col(args, p.view(columns, shape));
  Im2colArgs dense = args;
  dense.channel_stride = 6 * 7;
  dense.batch_stride = 2 * 6 * 7;
  im2col(dense, plain.data(), nullptr, {});
  CHECK_SAME_BITS(columns, plain);
  im2col_backward(args, p.view(columns, shape), p.view(grad_input, {2, 2, 6, 7}),
                  p.view(sums, {1, 2, 2, 5}));
  im2col_finish(args, p.view(sums, {1, 2, 2, 5}), p.view(grad_position, {2, 2, 2}),
                p.view(grad_sigma, {2, 2, 2}));
  double squares = 0, with_input = 0, moved = 0;
  for (const float v : columns) squares += static_cast<double>(v) * v;
  for (std::size_t i = 0; i < p.input.size(); ++i) {
    with_input += static_cast<double>(grad_input[i]) * p.input[i];
  }
  for (const float v : grad_position) moved += v < 0 ? -v : v;
  CHECK_CLOSE(with_input, squares, 1e-4,
              0);  // <columns(x), c> = <x, columns^T(c)> at c = columns(x)
  CHECK(moved > 0);

  const auto bad = [&](const char* part, auto&& call) {
    CHECK_THROWS(std::invalid_argument, part, call());
  };
  bad("columns must have the sizes (2, 2, 2, 6, 4), got (2, 2, 2, 4, 6)",
      [&] { im2col(args, p.view(columns, {2, 2, 2, 4, 6})); });
  bad("grad_input must have",
      [&] { im2col_backward(args, p.view(columns, shape), p.view(grad_input, {2, 2, 7, 6}), {}); });
  bad("sums must have",
      [&] { im2col_backward(args, p.view(columns, shape), {}, p.view(sums, {2, 2, 5, 1})); });
  bad("grad_sigma must have",
      [&] { im2col_finish(args, p.view(sums, {1, 2, 2, 5}), {}, p.view(grad_sigma, {8})); });
  bad("position must be float32, got float64", [&] {
    std::vector<double> doubles(8);
    im2col_args(p.input_view(), TensorView(doubles, {2, 2, 2}), {}, {3, 5});
  });
  bad("layout must be kChannelsFirst", [&] {
    p.options.layout = Layout::kChannelsLast;
    im2col_args(p.input_view(), p.view(p.position, {2, 2, 2}), {}, {3, 5}, Version::kV0, p.options);
  });
}

TEST(what_does_not_fit_is_named) {
  Problem p;
  std::vector<double> doubles(1000);
  const ConstructArgs build = p.building();
  const ConvArgs conv = p.convolving();
  const auto kernel = p.view(p.kernel, p.kernel_shape);
  const auto output = p.view(p.output, {2, 2, 6, 4});
  const auto bad = [&](const char* part, auto&& call) {
    CHECK_THROWS(std::invalid_argument, part, call());
  };
  bad("weight must have", [&] { construct_args(p.view(p.weight, {4}), {}, {}, {3, 5}); });
  bad("position must have the sizes (2, 2, 2), got (8)",
      [&] { construct_args(p.view(p.weight, {2, 2}), p.view(p.position, {8}), {}, {3, 5}); });
  bad("sigma must have", [&] {
    construct_args(p.view(p.weight, {2, 2}), p.view(p.position, {2, 2, 2}), p.view(p.sigma, {2, 4}),
                   {3, 5});
  });
  bad("number of entries of size must be between 1 and 3, got 4",
      [&] { construct_args(p.view(p.weight, {2, 2}), {}, {}, {3, 5, 1, 1}); });
  bad("sigma must not be null", [&] {
    construct(construct_args(p.view(p.weight, {2, 2}), p.view(p.position, {2, 2, 2}), {}, {3, 5}),
              kernel);
  });
  bad("kernel must have the sizes (2, 3, 5), got (2, 1, 5, 3)",
      [&] { construct(build, p.view(p.kernel, {2, 1, 5, 3})); });
  bad("kernel must be float32, got float64",
      [&] { construct(build, TensorView(doubles.data(), {2, 3, 5})); });
  bad("grad_weight must have",
      [&] { construct_backward(build, kernel, p.view(p.weight, {4}), {}); });
  bad("grad_position must have",
      [&] { construct_backward(build, kernel, {}, p.view(p.position, {4, 2})); });
  bad("support must have", [&] {
    std::vector<std::uint8_t> support(30);
    construct_support(build, TensorView(support, {30}));
  });
  bad("number of axes of input must be between 3",
      [&] { conv_args(p.view(p.input, {12, 14}), {}); });
  bad("kernel must have as many axes", [&] { conv_args(p.input_view(), {2, 1, 3}); });
  bad("must be a multiple of the channels of kernel, 3",
      [&] { conv_args(p.input_view(), {2, 3, 3, 5}); });
  bad("out_channels must be a multiple of groups",
      [&] { output_shape(conv_args(p.input_view(), {3, 1, 3, 5})); });
  bad("kernel_size[0] reaches over", [&] { conv_args(p.input_view(), {2, 1, 7, 5}); });
  bad("output must have the sizes (2, 2, 6, 4), got (2, 2, 4, 6)",
      [&] { direct_conv(conv, p.input_view(), kernel, {}, p.view(p.output, {2, 2, 4, 6})); });
  bad("bias must have the sizes (2), got (3)", [&] {
    Values three(3);
    direct_conv(conv, p.input_view(), kernel, TensorView(three, {3}), output);
  });
  bad("kernel must have",
      [&] { direct_conv(conv, p.input_view(), p.view(p.kernel, {1, 2, 3, 5}), {}, output); });
  bad("grad_input must have",
      [&] { direct_conv_backward_input(conv, output, kernel, p.view(p.input, {2, 2, 7, 6})); });
  bad("grad_output must have", [&] {
    direct_conv_backward_kernel(conv, p.view(p.output, {96}), p.input_view(), {}, kernel);
  });
  bad("input must be float32", [&] {
    layer_forward(p.layer(), TensorView(doubles.data(), {2, 2, 6, 7}), {}, output, nullptr);
  });
  bad("saved must not be null",
      [&] { layer_forward(p.layer(), p.input_view(), {}, output, nullptr); });
  bad("grad_bias must have", [&] {
    LayerGradViews grads;
    grads.bias = p.view(p.weight, {4});
    layer_backward(p.layer(), output, p.input_view(), grads, p.input.data());
  });
  bad("num_threads", [&] { construct(build, kernel, {DeviceType::kCpu, 0, nullptr, 0}); });
}

}  // namespace

CHECK_MAIN()
