// The convolution on tensor cores, its kernels run on the host, against plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "cuda_host/schedules.hpp"
#include "toeplitz_on_host_cuda.hpp"

using namespace dcls;
using namespace dcls::test;

TEST(every_kernel_and_dtype) {
  for (const ConvArgs& args : covered_args()) {
    const ConvProblem problem(args);
    check_problem<Half>(problem);
    check_problem<BFloat16>(problem);
    check_problem<float>(problem);
  }
}

TEST(all_instantiated_kernels_were_run) {
  std::set<std::pair<int, int>> found;
  for (const std::int64_t width : {8, 16, 32, 56}) {
    for (const std::int64_t size : {5, 19, 27}) {
      const ConvArgs args = conv_args(1, 1, 1, 1, {4, width}, {3, size}, {1, size / 2});
      const ConvProblem problem(args);
      check_problem<Half>(problem);
      check_problem<BFloat16>(problem);
      check_problem<float>(problem);
      const cuda::ToeplitzPlan plan = cuda::make_toeplitz_plan(args, ConvPass::kForward);
      cuda::dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
        constexpr int kTiles = tiles.value, kBlocks = blocks.value;
        using host_cuda::launch_count;
        CHECK(launch_count(cuda::toeplitz_forward<Half, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_forward<BFloat16, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_forward<float, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_kernel_partial<float, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_kernel_partial<Half, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_kernel_partial<BFloat16, kTiles, kBlocks>) > 0);
        found.emplace(kTiles, kBlocks);
      });
    }
  }
  CHECK_EQ(found.size(), std::size(cuda::kToeplitzColumns));
  const ConvProblem last(
      conv_args(2, 70, 70, 70, {3, 22}, {3, 5}, {1, 2}, {}, {}, Layout::kChannelsLast));
  check_problem<Half>(last);
  check_problem<BFloat16>(last);
  check_problem<float>(last);
  CHECK(host_cuda::launch_count(cuda::to_channels_first<Half>) > 0);
  CHECK(host_cuda::launch_count(cuda::to_channels_first<BFloat16>) > 0);
  CHECK(host_cuda::launch_count(cuda::to_channels_first<float>) > 0);
}

TEST(random_geometries) {
  int count = 0;
  for (unsigned seed = 0; seed < 400; ++seed) {
    ConvArgs args = random_conv_args(seed);
    args.ndim = 1 + args.ndim % 2;
    args.in_channels = args.out_channels = args.groups;
    for (int d = 0; d < args.ndim; ++d) args.stride[d] = args.dilation[d] = 1;
    ConvProblem::set_usual_output(args);
    args.output_size[0] += seed % 3;  // any output size is allowed
    args.dtype = DType::kBFloat16;
    if (!cuda::toeplitz_covers(args)) continue;
    ++count;
    const check::Case here("seed ", seed);
    const ConvProblem problem(args, seed, seed % 3 == 0 ? 0.9 : 0.3);
    check_problem<BFloat16>(problem);
    if (seed % 2 == 0) check_problem<float>(problem);
  }
  CHECK(count > 100);
}

/// The nearest numbers of 11 significant bits, ties away from zero.
void round_to_tf32(std::vector<double>& values) {
  for (double& value : values) {
    int exponent = 0;
    const double part = std::frexp(value, &exponent);
    value = std::ldexp(std::round(std::ldexp(part, 11)), exponent - 11);
  }
}

/// Values that are not of few bits: as good as sums in float32 of the values that the products
/// read.
template <typename Storage>
void check_errors(const ConvArgs& args) {
  ConvProblem problem(args, 8, 0.3);
  for (auto* values : {&problem.input, &problem.kernel, &problem.grad_output, &problem.bias}) {
    for (std::size_t i = 0; i < values->size(); ++i) {
      (*values)[i] *= 1 + 0.37 * std::sin(static_cast<double>(i));
    }
    *values = to_double(to_storage<Storage>(*values));  // the oracle reads what the kernels read
  }
  const check::Case here(problem.name(), ", dtype ", static_cast<int>(DTypeOf<Storage>::value));
  const ConvResults got = on_host_cuda<Storage>(problem);
  if (sizeof(Storage) == 4) {
    for (auto* values : {&problem.input, &problem.kernel, &problem.grad_output}) {
      round_to_tf32(*values);
    }
    check_same_bits(got, on_host_cuda<Storage>(problem));
  }
  const ConvResults exact = problem.by_the_formula();
  const ConvResults plain = problem.on_cpu<Storage>();  // float32 sums, then rounded
  // The error of a sum in float32, whatever its order.
  const double least = sizeof(Storage) == 4 ? 2e-6 : 0;
  const auto near = [&](const std::vector<double>& values, const std::vector<double>& in_float,
                        const std::vector<double>& in_double) {
    const double bound = 2 * relative_error(in_float, in_double);
    CHECK(relative_error(values, in_double) <= std::max(bound, least));
  };
  near(got.output, plain.output, exact.output);
  near(got.grad_input, plain.grad_input, exact.grad_input);
  near(got.grad_kernel, plain.grad_kernel, exact.grad_kernel);
}
TEST(errors_are_those_of_float32_sums) {
  for (const ConvArgs& args : covered_args()) {
    check_errors<Half>(args);
    check_errors<BFloat16>(args);
    check_errors<float>(args);
  }
}

TEST(infinite_values_reach_what_they_meet) {
  for (const ConvArgs& args : covered_args()) {
    if (args.batch * args.groups * args.kernel_size[0] > 60) continue;  // minutes
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<BFloat16>(p); });
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<float>(p); });
  }
}

/// The same of the gradient of the output, beside the CPU: the zeros beside an input make NaN too.
template <typename Storage>
void check_infinite_gradients(const ConvArgs& args) {
  ConvProblem problem(args, 7);
  for (auto* values : {&problem.input, &problem.kernel, &problem.grad_output}) {
    for (double& v : *values) v = v < 0 ? -1 : 1;
  }
  for (auto& mark : problem.support) mark = 1;
  const std::vector<double> finite = problem.grad_output;
  for (const int part : {0, 1, 2, 4}) {
    problem.grad_output = finite;
    const std::size_t place = (finite.size() - 1) * static_cast<std::size_t>(part) / 4;
    problem.grad_output[place] = part == 1 ? std::nan("") : HUGE_VAL;
    const check::Case here(problem.name(), ", grad_output ", place);
    const ConvResults got = on_host_cuda<Storage>(problem), expected = problem.on_cpu<Storage>();
    CHECK(kinds(got.grad_input) == kinds(expected.grad_input));
    CHECK(kinds(got.grad_kernel) == kinds(expected.grad_kernel));
  }
}
TEST(infinite_gradients_reach_what_they_meet) {
  for (const ConvArgs& args : covered_args()) {
    if (args.batch * args.groups * args.kernel_size[0] > 60) continue;  // minutes
    check_infinite_gradients<BFloat16>(args);
    check_infinite_gradients<float>(args);
  }
}

template <typename Storage>
void check_zero_cells() {
  ConvProblem problem(conv_args(1, 1, 1, 1, {8, 9}, {3, 3}, {1, 1}), 6, 1.0);
  for (double& w : problem.kernel) w = 0;
  problem.kernel[4] = 2;
  problem.input[0] = HUGE_VAL;
  const ConvResults got = on_host_cuda<Storage>(problem);
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    CHECK_EQ(got.output[i], problem.input[i] * 2 + problem.bias[0]);
  }
  problem.kernel[0] = std::nan("");
  for (const double value : on_host_cuda<Storage>(problem).output) CHECK(value != value);
}
TEST(zero_cells_meet_no_infinity) {
  check_zero_cells<Half>();
  check_zero_cells<float>();
}

TEST(fewer_blocks_than_work) {
  HowToRun how;
  for (const unsigned blocks : {2u, 1u}) {
    how.blocks = blocks;
    how.splits = static_cast<int>(blocks);  // of several tiles
    for (const ConvArgs& args : covered_args()) {
      check_problem<BFloat16>(ConvProblem(args, blocks), how);
      check_problem<float>(ConvProblem(args, blocks), how);
    }
  }
}

template <typename Storage>
void check_orders(const ConvProblem& problem) {
  const ConvResults first = on_host_cuda<Storage>(problem);
  host_cuda::in_all_schedules([&](const LaunchOptions& options) {
    HowToRun how;
    how.launch = options;
    check_same_bits(on_host_cuda<Storage>(problem, how), first);
  });
}
TEST(bitwise_equal_in_every_order_of_threads) {
  for (const ConvArgs& args : covered_args()) {
    if (args.kernel_size[0] > 20) continue;  // they are slow, and use no other barriers
    ConvProblem problem(args, 5);
    for (double& v : problem.input) v = v / 3;  // sums that are rounded
    check_orders<BFloat16>(problem);
    check_orders<float>(problem);
  }
}

template <typename Storage>
void check_addresses(Layout layout) {
  ConvArgs args = conv_args(2, 8, 8, 8, {6, 16}, {3, 5}, {1, 2}, {}, {}, layout);
  args.dtype = DTypeOf<Storage>::value;
  const ConvProblem problem(args);
  const auto kernel = to_storage<Storage>(problem.kernel);
  const auto input = problem.store<Storage>(problem.input, 8);
  std::vector<double> first;
  for (std::size_t shift = 0; shift < 4; ++shift) {
    std::vector<Storage> from(shift);
    from.insert(from.end(), input.begin(), input.end());
    const GuardedBuffer<Storage> source(from, "input");
    GuardedBuffer<Storage> target(shift + input.size(), "output");
    const GuardedBuffer<Storage> cells(kernel, "kernel");
    convolve<Storage>({}, args, ConvPass::kForward, source.data() + shift, cells.data(), nullptr,
                      target.data() + shift);
    std::vector<double> got;
    for (std::size_t i = shift; i < target.size(); ++i)
      got.push_back(numeric::load(target.data()[i]));
    if (shift == 0) first = got;
    CHECK_SAME_BITS(got, first);
  }
}
TEST(tensors_at_any_address) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    check_addresses<BFloat16>(layout);
    check_addresses<float>(layout);
  }
}

CHECK_MAIN()
