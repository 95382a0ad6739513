// The fast FIR algorithm of the direct convolution on the CPU: its algebra, when it is taken, and
// its results against plain loops.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "cpu/conv/conv_plan.hpp"
#include "cpu/conv/fast_fir.hpp"
#include "dcls/conv.hpp"

using namespace dcls;
using namespace dcls::test;
using cpu::PlannedConv;

namespace {

constexpr ConvPass kPasses[] = {ConvPass::kForward, ConvPass::kBackwardInput,
                                ConvPass::kBackwardKernel};

/// Whether the pass of a problem takes the algorithm, if it may.
template <typename Storage = float>
bool is_fast(const ConvProblem& problem, ConvPass pass, bool may = true) {
  ConvArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  PlannedConv planned(args, pass, may);
  if (pass == ConvPass::kBackwardKernel) {
    planned.list_cells(problem.support.data(), 1);
  } else {
    planned.list_weights(to_storage<Storage>(problem.kernel).data(), 1);
  }
  return planned.plan().fast;
}

constexpr double kDense = 0.95;

/// Depthwise problems of many cells, in every form that a plan has.
std::vector<ConvArgs> dense_args() {
  const Layout last = Layout::kChannelsLast;
  return {
      conv_args(2, 3, 3, 3, {56, 56}, {17, 17}, {8, 8}),
      conv_args(1, 18, 18, 18, {44, 30}, {23, 23}, {11, 11}, {}, {}, last),
      conv_args(2, 2, 6, 2, {41, 37}, {15, 13}, {7, 6}),    // three outputs of an input
      conv_args(1, 2, 2, 2, {58, 60}, {16, 15}, {0, 20}),   // padding on one axis only
      conv_args(1, 2, 2, 2, {64, 41}, {14, 21}, {-3, 4}),   // less than none
      conv_args(1, 2, 2, 2, {50, 23}, {18, 19}, {30, 9}),   // rows that read nothing
      conv_args(1, 1, 1, 1, {300, 100}, {13, 14}, {6, 7}),  // several tiles
      conv_args(1, 17, 17, 17, {110, 60}, {13, 14}, {6, 7}, {}, {}, last),
      conv_args(1, 2, 2, 2, {5, 42, 34}, {3, 12, 11}, {1, 6, 5}),
      conv_args(1, 2, 2, 2, {42, 33}, {17, 17}, {8, 8}, {1, 2}, {1, 3}),  // strides of columns
  };
}

}  // namespace

TEST(algebra) {
  using namespace cpu::fast_fir;
  const int x[2 * kBlock - 1] = {5, -3, 7, 11, -2, 13, 4};
  const int h[kBlock] = {3, -8, 6, 17};
  int of_class[kClasses], product[kClasses], row[kBlock];
  spread(h, of_class);
  for (int number = 0; number < kClasses; ++number) {
    const Class c = class_of(number);
    // Differences along the levels of the plane, then the row that the class reads.
    int values[2 * kBlock - 1];
    for (int i = 0; i < 2 * kBlock - 1; ++i) values[i] = x[i];
    for (const int distance : {1, 2}) {
      if ((c.plane & distance) == 0) continue;
      for (int i = 0; i + distance < 2 * kBlock - 1; ++i) values[i] -= values[i + distance];
    }
    int taps = 0;
    for (int j = 0; j < kBlock; ++j) taps += (c.taps >> j & 1) != 0 ? h[j] : 0;
    CHECK_EQ(taps, of_class[number]);
    product[number] = values[c.offset] * of_class[number];
  }
  combine(product, row);
  for (int i = 0; i < kBlock; ++i) {
    int expected = 0;
    for (int j = 0; j < kBlock; ++j) expected += x[i + j] * h[j];
    CHECK_EQ(row[i], expected);
  }
}

TEST(taken_where_it_is_less_work) {
  for (const ConvArgs& args : dense_args()) {
    const ConvProblem problem(args, 1, kDense);
    const check::Case here(problem.name());
    for (const ConvPass pass : kPasses) {
      // Of several outputs of an input the gradient is a sum over channels.
      const bool sum = pass == ConvPass::kBackwardInput && args.out_channels > args.in_channels;
      CHECK_EQ(is_fast(problem, pass), !sum && args.stride[1] == 1);
      CHECK(!is_fast(problem, pass, false));
    }
  }
  const auto no = [](const ConvArgs& args, double density = kDense) {
    const ConvProblem problem(args, 2, density);
    const check::Case here(problem.name(), ", density ", density);
    for (const ConvPass pass : kPasses) CHECK(!is_fast(problem, pass));
  };
  no(conv_args(2, 3, 3, 3, {56, 56}, {17, 17}, {8, 8}), 0.3);
  no(conv_args(2, 3, 3, 3, {56, 56}, {7, 7}, {3, 3}));
  no(conv_args(2, 3, 3, 3, {14, 14}, {17, 17}, {8, 8}));
  no(conv_args(2, 4, 4, 2, {56, 56}, {17, 17}, {8, 8}));
  no(conv_args(2, 3, 3, 3, {56, 56}, {17, 17}, {8, 8}, {2, 1}));
  no(conv_args(2, 3, 3, 3, {56, 56}, {17, 17}, {8, 8}, {1, 1}, {2, 1}));
  no(conv_args(2, 3, 3, 3, {500}, {129}, {64}));
  no(conv_args(16, 3, 3, 3, {12, 17}, {17, 17}, {8, 8}));  // the batch as columns
  const ConvProblem dense(conv_args(2, 3, 3, 3, {56, 56}, {17, 17}, {8, 8}), 2, kDense);
  for (const ConvPass pass : kPasses) {
    CHECK(is_fast<Half>(dense, pass));
    CHECK(!is_fast<double>(dense, pass));
  }
}

TEST(results) {
  for (const ConvArgs& args : dense_args()) {
    for (const double density : {kDense, 0.7}) {
      const ConvProblem problem(args, 3, density);
      check_results<float>(problem, problem.on_cpu<float>());
      check_results<double>(problem, problem.on_cpu<double>());
      check_results<Half>(problem, problem.on_cpu<Half>());
      check_results<BFloat16>(problem, problem.on_cpu<BFloat16>());
    }
  }
}

TEST(any_number_of_threads) {
  for (const ConvArgs& args : dense_args()) {
    ConvProblem problem(args, 4, kDense);
    for (double& v : problem.input) v /= 3;  // sums that are rounded
    const ConvResults one = problem.on_cpu<float>(1);
    for (const int threads : {2, 3, 8}) check_same_bits(problem.on_cpu<float>(threads), one);
  }
}

TEST(infinite_values_reach_what_they_meet) {
  const Layout last = Layout::kChannelsLast;
  for (const ConvArgs& args :
       {conv_args(1, 3, 3, 3, {42, 30}, {13, 13}, {6, 6}),
        conv_args(1, 17, 17, 17, {56, 25}, {12, 14}, {0, 7}, {}, {}, last)}) {
    for (const ConvPass pass : kPasses) CHECK(is_fast(ConvProblem(args, 7, 1.0), pass));
    check_infinities(args, [](const ConvProblem& p) { return p.on_cpu<float>(); });
    check_infinities(args, [](const ConvProblem& p) { return p.on_cpu<BFloat16>(); });
  }
}

TEST(no_sum_overflows) {
  // What is too large for a sum of several values, but not for a product of two.
  ConvProblem problem(conv_args(1, 2, 2, 2, {40, 40}, {15, 15}, {7, 7}), 5, 1.0);
  for (double& v : problem.input) v *= 0x1p120;
  for (double& v : problem.grad_output) v *= 0x1p120;
  for (double& v : problem.kernel) v *= 0x1p-20;
  const ConvResults got = problem.on_cpu<float>(), expected = problem.by_the_formula();
  CHECK(relative_error(got.output, expected.output) < 1e-6);
  CHECK(relative_error(got.grad_input, expected.grad_input) < 1e-6);
  ConvProblem heavy(conv_args(1, 2, 2, 2, {40, 40}, {15, 15}, {7, 7}), 5, 1.0);
  for (double& v : heavy.kernel) v *= 0x1p120;
  for (double& v : heavy.input) v *= 0x1p-20;
  for (double& v : heavy.grad_output) v *= 0x1p-20;
  check_results<float>(heavy, heavy.on_cpu<float>());
}

TEST(prepared) {
  ConvProblem problem(conv_args(2, 3, 3, 3, {40, 41}, {17, 17}, {8, 8}), 6, kDense);
  const auto forward = [&](const PreparedConv& prepared, const std::vector<float>& x) {
    std::vector<float> y(problem.grad_output.size());
    prepared.forward(x.data(), nullptr, y.data(), cpu_threads(2));
    return y;
  };
  const auto kernel = to_storage<float>(problem.kernel);
  auto x = to_storage<float>(problem.input);
  const PreparedConv prepared(problem.args, kernel.data(), {});
  for (const float first : {x[0], std::numeric_limits<float>::infinity()}) {
    x[0] = first;
    std::vector<float> want(problem.grad_output.size());
    direct_conv(problem.args, x.data(), kernel.data(), nullptr, want.data(), nullptr, {});
    CHECK_SAME_BITS(to_double(forward(prepared, x)), to_double(want));
  }
}

CHECK_MAIN()
