// A whole layer on the CPU against the functions for its parts, bit for bit, and the checks of its
// arguments.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "layer_problem.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

Execution on_cpu(int threads = 2) {
  Execution where;
  where.num_threads = threads;
  return where;
}

template <typename Parameter, typename Storage>
LayerResults run(const LayerProblem& problem, int threads = 2) {
  const auto w = to_storage<Parameter>(problem.construct.weight);
  const auto p = to_storage<Parameter>(problem.construct.position);
  const auto s = to_storage<Parameter>(problem.construct.sigma);
  const ConvProblem& conv = problem.conv;
  const auto x = conv.store<Storage>(conv.input, conv.args.in_channels);
  const auto g = conv.store<Storage>(conv.grad_output, conv.args.out_channels);
  const auto b = to_storage<Storage>(conv.bias);
  LayerArgs args = problem.args<Parameter, Storage>();
  args.construct.weight = w.data();
  args.construct.position = p.data();
  args.construct.sigma = s.empty() ? nullptr : s.data();
  args.for_input = args.for_parameters = true;
  const Execution where = on_cpu(threads);
  CHECK(layer_workspace(args, LayerPass::kForward, where) == 0);
  std::vector<std::byte> saved(layer_saved(args, where));
  std::vector<Storage> output(g.size()), grad_x(x.size()), grad_b(b.size());
  std::vector<Parameter> grad_w(w.size()), grad_p(p.size()), grad_s(s.size());
  layer_forward(args, x.data(), b.data(), output.data(), saved.data(), nullptr, where);
  const LayerGrads grads{grad_x.data(), grad_b.data(), grad_w.data(), grad_p.data(),
                         s.empty() ? nullptr : grad_s.data()};
  layer_backward(args, g.data(), x.data(), grads, saved.data(), nullptr, where);
  return {to_double(output), to_double(grad_x), to_double(grad_b),
          to_double(grad_w), to_double(grad_p), to_double(grad_s)};
}

template <typename Parameter, typename Storage = Parameter>
void check_layer(const LayerProblem& problem) {
  const check::Case here(problem.name(), ", dtypes ", static_cast<int>(DTypeOf<Parameter>::value),
                         " ", static_cast<int>(DTypeOf<Storage>::value));
  const LayerResults got = run<Parameter, Storage>(problem);
  const LayerResults expected = problem.by_parts<Parameter, Storage>(on_cpu());
  CHECK_SAME_BITS(got.output, expected.output);
  CHECK_SAME_BITS(got.input, expected.input);
  CHECK_SAME_BITS(got.weight, expected.weight);
  CHECK_SAME_BITS(got.position, expected.position);
  CHECK_SAME_BITS(got.sigma, expected.sigma);
  CHECK(relative_error(got.bias, problem.bias_gradient()) < DTypeOf<Storage>::tolerance);
  const LayerResults alone = run<Parameter, Storage>(problem, 1);
  CHECK_SAME_BITS(got.bias, alone.bias);
  CHECK_SAME_BITS(got.position, alone.position);
}

std::vector<ConvArgs> problems() {
  std::vector<ConvArgs> all = {
      conv_args(2, 4, 6, 2, {40}, {5}, {2}),
      conv_args(3, 8, 8, 8, {9, 30}, {7, 5}, {3, 2}),
      conv_args(1, 3, 4, 1, {4, 5, 9}, {3, 2, 5}, {1, 0, 2}),
      conv_args(17, 2, 2, 1, {33}, {25}, {24}),
  };
  all.push_back(all[1]);
  all.back().layout = Layout::kChannelsLast;
  return all;
}

}  // namespace

TEST(equals_its_parts) {
  for (const ConvArgs& args : problems()) {
    for (const Version version : kVersions) {
      const LayerProblem problem(args, version);
      check_layer<float>(problem);
      check_layer<double>(problem);
    }
    const LayerProblem problem(args, Version::kGauss);
    check_layer<Half>(problem);
    check_layer<BFloat16>(problem);
    check_layer<float, Half>(problem);
    check_layer<float, BFloat16>(problem);
  }
}

TEST(without_gradients_of_parameters) {
  const LayerProblem problem(conv_args(1, 3, 3, 3, {12}, {7}, {3}), Version::kV1);
  const std::vector<float> w = to_storage<float>(problem.construct.weight),
                           p = to_storage<float>(problem.construct.position),
                           x = to_storage<float>(problem.conv.input);
  LayerArgs args = problem.args<float, float>();
  args.construct.weight = w.data();
  args.construct.position = p.data();
  std::vector<float> output(problem.conv.grad_output.size());
  const std::size_t size = layer_saved(args, on_cpu());
  std::vector<std::byte> saved(size + 64, std::byte{77});
  layer_forward(args, x.data(), nullptr, output.data(), saved.data(), nullptr, on_cpu());
  // Nothing is written behind the memory that was asked for: there is no support.
  for (std::size_t i = size; i < saved.size(); ++i) CHECK(saved[i] == std::byte{77});
}

TEST(a_long_gradient_of_the_bias) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    ConvArgs conv = conv_args(1, 2, 2, 2, {1500, 1000}, {1, 1});
    conv.layout = layout;
    LayerArgs args = LayerProblem(conv, Version::kV1, 1).args<float, float>();
    const float weight[2] = {}, position[4] = {};
    args.construct.weight = weight;
    args.construct.position = position;
    std::vector<float> values(3000000, 0.1f), bias(2);
    std::vector<std::byte> saved(layer_saved(args, on_cpu()));
    LayerGrads grads;
    grads.bias = bias.data();
    layer_backward(args, values.data(), values.data(), grads, saved.data(), nullptr, on_cpu());
    // Runs of 256 terms are summed in float32. All terms in float32 would be off by 5e-4.
    for (const float sum : bias) CHECK_CLOSE(sum, 1500000 * double{0.1f}, 256 * 0x1p-24, 0);
  }
}

TEST(dense_axes_and_other_orders_of_rows) {
  LayerProblem problem(conv_args(2, 4, 4, 2, {5, 9, 8}, {3, 5, 4}, {1, 2, 1}), Version::kV1, 2, 2);
  check_layer<double>(problem);
  problem.construct.args.position_row[0] = 1;
  problem.construct.args.position_row[1] = 0;
  check_layer<double>(problem);
}

TEST(position_rows_belong_to_axes) {
  ConstructProblem turned(Version::kGauss, {5, 9}, 4, 3);
  ConstructProblem straight = turned;
  const auto half = static_cast<std::ptrdiff_t>(turned.position.size() / 2);
  for (std::vector<double>* rows : {&turned.position, &turned.sigma}) {
    std::rotate(rows->begin(), rows->begin() + half, rows->end());
  }
  turned.args.position_row[0] = 1;
  turned.args.position_row[1] = 0;
  const Results got = turned.on_cpu<double>();
  const Results expected = straight.on_cpu<double>();
  CHECK_SAME_BITS(got.kernel, expected.kernel);
  std::vector<double> position = got.position;
  std::rotate(position.begin(), position.begin() + half, position.end());
  CHECK_SAME_BITS(position, expected.position);
}

TEST(arguments_are_checked) {
  const LayerProblem problem(conv_args(1, 2, 2, 1, {8}, {3}, {1}), Version::kV1);
  LayerArgs args = problem.args<float, float>();
  std::vector<float> values(4096);
  args.construct.weight = args.construct.position = values.data();
  const auto forward = [&](const LayerArgs& call) {
    layer_forward(call, values.data(), nullptr, values.data(), values.data(), nullptr, on_cpu());
  };
  LayerArgs wrong = args;
  wrong.construct.rows = 3;
  CHECK_THROWS(std::invalid_argument, "construct must build the 12 cells", forward(wrong));
  wrong = args;
  wrong.conv.dtype = DType::kFloat64;
  CHECK_THROWS(std::invalid_argument, "construct.dtype must be that of conv", forward(wrong));
  wrong = args;
  wrong.construct.position_row[0] = 1;
  CHECK_THROWS(std::invalid_argument, "position_row[0] must be between", forward(wrong));
  const auto backward = [&](const LayerGrads& grads) {
    layer_backward(args, values.data(), values.data(), grads, values.data(), nullptr, on_cpu());
  };
  LayerGrads grads;
  grads.input = values.data();
  CHECK_THROWS(std::invalid_argument, "without for_input", backward(grads));
  grads = {};
  grads.position = values.data();
  CHECK_THROWS(std::invalid_argument, "without for_parameters", backward(grads));
  wrong = args;
  wrong.construct.rows = 2;
  wrong.construct.size[0] = 6;
  CHECK_THROWS(std::invalid_argument, "construct.rows must be a multiple of the 4 pairs",
               forward(wrong));
  CHECK_THROWS(
      std::invalid_argument, "output must not be null",
      layer_forward(args, values.data(), nullptr, nullptr, values.data(), nullptr, on_cpu()));
}

CHECK_MAIN()
