// The C++ API of the direct convolution on the CPU, against plain loops.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "dcls/runtime.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

template <typename Storage>
void check_problem(const ConvProblem& problem) {
  check_results<Storage>(problem, problem.on_cpu<Storage>());
}

}  // namespace

TEST(random_geometries) {
  for (unsigned seed = 0; seed < 600; ++seed) {
    const check::Case here("seed ", seed);
    const ConvProblem problem(random_conv_args(seed), seed, seed % 3 == 0 ? 0.9 : 0.3);
    check_problem<double>(problem);
    check_problem<float>(problem);
    if (seed % 4 != 0) continue;
    check_problem<Half>(problem);
    check_problem<BFloat16>(problem);
  }
}

TEST(strides_past_the_input) {
  for (const ConvArgs& args : far_strides()) check_problem<float>(ConvProblem(args));
}

TEST(many_phases) {
  for (const ConvArgs& args : many_phases()) {
    check_problem<double>(ConvProblem(args));
    check_problem<float>(ConvProblem(args, 1, 0.9));
  }
}

TEST(batches_as_columns) {
  // Fewer, as many and more images than a vector has lanes; lines of a tile, and of several, which
  // cut a batch of 48 to 24.
  const auto check = [](const ConvArgs& args, unsigned seed) {
    const ConvProblem problem(args, seed, 0.6);
    check_problem<double>(problem);
    check_problem<float>(problem);
    check_problem<BFloat16>(problem);
  };
  for (const std::int64_t batch : {3, 6, 8, 12, 16, 24, 48}) {
    for (const std::int64_t points : {37, 1100}) {
      check(conv_args(batch, 2, 2, 2, {points}, {7}, {3}), 1);
      check(conv_args(batch, 3, 2, 1, {points}, {7}, {3}), 2);
    }
    check(conv_args(batch, 2, 2, 2, {7, 7}, {9, 9}, {4, 4}), 3);
  }
}

TEST(batches_as_lanes_of_other_processors) {
  const ConvArgs args = conv_args(8, 8, 8, 1, {100}, {1}, {0});
  CHECK(direct_conv_takes_batch_as_lanes(args, 32));
  CHECK(!direct_conv_takes_batch_as_lanes(args, 64));
  CHECK_THROWS(std::invalid_argument, "vector_bytes must be 0, 32 or 64",
               direct_conv_takes_batch_as_lanes(args, 16));
}

TEST(infinite_values_reach_what_they_meet) {
  for (const ConvArgs& args : typical_conv_args()) {
    check_infinities(args, [](const ConvProblem& p) { return p.on_cpu<float>(); });
    check_infinities(args, [](const ConvProblem& p) { return p.on_cpu<double>(); });
    check_infinities(args, [](const ConvProblem& p) { return p.on_cpu<BFloat16>(); });
  }
}

TEST(empty) {
  for (const ConvArgs& args : empty_conv_args()) check_problem<float>(ConvProblem(args));
}

TEST(any_number_of_threads) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    ConvProblem problem(conv_args(4, 40, 40, 40, {30, 31}, {17, 9}, {8, 4}, {}, {}, layout));
    for (double& v : problem.input) v /= 3;  // sums that are rounded
    const ConvResults one = problem.on_cpu<float>(1);
    for (const int threads : {2, 3, 8}) {
      check_same_bits(problem.on_cpu<float>(threads), one);
    }
  }
}

TEST(zero_cells_are_not_visited_and_nan_cells_are) {
  ConvProblem problem(conv_args(1, 1, 1, 1, {8, 9}, {3, 3}, {1, 1}), 6, 1.0);
  for (double& w : problem.kernel) w = 0;
  problem.kernel[4] = 2;
  problem.input[0] = HUGE_VAL;
  const ConvResults got = problem.on_cpu<float>();
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    CHECK_EQ(got.output[i], problem.input[i] * 2 + problem.bias[0]);
  }
  problem.kernel[0] = std::nan("");
  CHECK(std::isnan(problem.on_cpu<Half>().output.back()));
}

namespace {

/// What a PreparedConv writes at its second call, its kernel gone, against direct_conv.
template <typename Storage>
void check_prepared(const ConvProblem& problem) {
  ConvArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  const auto x = to_storage<Storage>(problem.input);
  auto kernel = to_storage<Storage>(problem.kernel);
  const auto bias = to_storage<Storage>(problem.bias);
  const std::size_t values =
      static_cast<std::size_t>(args.batch * args.out_channels * problem.output_points());
  std::vector<Storage> want(values), got(values);
  direct_conv(args, x.data(), kernel.data(), bias.data(), want.data(), nullptr, {});
  PreparedConv first(args, kernel.data(), {});
  PreparedConv prepared(std::move(first));
  for (Storage& w : kernel) w = Storage{};
  prepared.forward(x.data(), nullptr, got.data(), {});
  prepared.forward(x.data(), bias.data(), got.data(), cpu_threads(2));
  CHECK(values == 0 || std::memcmp(got.data(), want.data(), values * sizeof(Storage)) == 0);
}

}  // namespace

TEST(prepared) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const check::Case here("seed ", seed);
    const ConvProblem problem(random_conv_args(seed), seed, 0.4);
    check_prepared<float>(problem);
    check_prepared<BFloat16>(problem);
  }
  for (const ConvArgs& args : empty_conv_args()) check_prepared<float>(ConvProblem(args));
}

TEST(prepared_refuses) {
  float values[64] = {};
  ConvArgs args = conv_args(1, 2, 2, 2, {5}, {3}, {1});
  CHECK_THROWS(std::invalid_argument, "kernel must not be null", PreparedConv(args, nullptr, {}));
  Execution cuda;
  cuda.device = DeviceType::kCuda;
  CHECK_THROWS(std::invalid_argument, "where must be the CPU", PreparedConv(args, values, cuda));
  PreparedConv prepared(args, values, {});
  CHECK_THROWS(std::invalid_argument, "input must not be null",
               prepared.forward(nullptr, nullptr, values, {}));
  CHECK_THROWS(std::invalid_argument, "output must not be null",
               prepared.forward(values, nullptr, nullptr, {}));
  CHECK_THROWS(std::invalid_argument, "where must be the CPU",
               prepared.forward(values, nullptr, values, cuda));
  const PreparedConv moved(std::move(prepared));
  CHECK_THROWS(std::invalid_argument, "moved from",
               prepared.forward(values, nullptr, values + 32, {}));
  args.groups = 0;
  CHECK_THROWS(std::invalid_argument, "groups", PreparedConv(args, values, {}));
}

TEST(bad_arguments) {
  float values[64] = {};
  const auto call = [&](auto&& change) {
    ConvArgs args = conv_args(1, 2, 2, 2, {5}, {3}, {1});
    Execution where;
    const void* input = values;
    void* output = values + 32;
    change(args, where, input, output);
    direct_conv(args, input, values + 16, nullptr, output, nullptr, where);
  };
  call([](auto&...) {});
  const auto bad = [&](const char* part, auto&& change) {
    CHECK_THROWS(std::invalid_argument, part, call(change));
  };
  using A = ConvArgs;
  bad("ndim must be between 1 and 3, got 0", [](A& a, auto&...) { a.ndim = 0; });
  bad("ndim must be between 1 and 3, got 4", [](A& a, auto&...) { a.ndim = 4; });
  bad("dtype", [](A& a, auto&...) { a.dtype = static_cast<DType>(4); });
  bad("layout", [](A& a, auto&...) { a.layout = static_cast<Layout>(2); });
  bad("batch must be between 0", [](A& a, auto&...) { a.batch = -1; });
  bad("groups must be between 1", [](A& a, auto&...) { a.groups = 0; });
  bad("in_channels must be a multiple of groups", [](A& a, auto&...) { a.in_channels = 3; });
  bad("out_channels must be a multiple of groups", [](A& a, auto&...) { a.out_channels = 5; });
  bad("input_size[0] must be", [](A& a, auto&...) { a.input_size[0] = -1; });
  bad("output_size[0] must be", [](A& a, auto&...) { a.output_size[0] = -1; });
  bad("kernel_size[0] must be between 1", [](A& a, auto&...) { a.kernel_size[0] = 0; });
  bad("stride[0] must be between 1", [](A& a, auto&...) { a.stride[0] = 0; });
  bad("dilation[0] must be between 1", [](A& a, auto&...) { a.dilation[0] = 0; });
  bad("padding[0] must be", [](A& a, auto&...) { a.padding[0] = std::int64_t{1} << 40; });
  bad("too large", [](A& a, auto&...) { a.batch = std::numeric_limits<std::int64_t>::max(); });
  bad("the kernel is too large", [](A& a, auto&...) {  // the other tensors are empty
    a = conv_args(0, std::int64_t{1} << 24, std::int64_t{1} << 24, 1, {8192}, {8192});
  });
  bad("input must not be null", [](A&, Execution&, const void*& i, auto&) { i = nullptr; });
  bad("output must not be null", [](A&, Execution&, const void*&, void*& o) { o = nullptr; });
  bad("num_threads", [](A&, Execution& e, auto&...) { e.num_threads = 0; });
  CHECK_EQ(direct_conv_workspace(conv_args(1, 2, 2, 2, {5}, {3}), ConvPass::kForward, {}), 0u);
  CHECK_THROWS(
      std::invalid_argument, "pass",
      direct_conv_workspace(conv_args(1, 2, 2, 2, {5}, {3}), static_cast<ConvPass>(3), {}));
}

CHECK_MAIN()
