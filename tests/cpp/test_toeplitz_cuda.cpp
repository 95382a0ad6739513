// The convolution on tensor cores, its kernels run on the host, against plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "cuda/conv/toeplitz_launch.cuh"
#include "cuda_host/schedules.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

namespace {

struct HowToRun {
  LaunchOptions launch = {};
  unsigned blocks = 0;  ///< 0 for one per item, as the library launches
  int splits = 0;       ///< of the gradient of the kernel, at most; 0 for those of the plan
};

LaunchOptions with_shared(LaunchOptions options) {
  options.shared_limit = cuda::kToeplitzShared;
  options.max_block_threads = cuda::kToeplitzThreads;
  return options;
}

template <typename Storage>
void convolve(const HowToRun& how, const ConvArgs& args, ConvPass pass, const Storage* source,
              const Storage* kernel, const Storage* bias, Storage* target) {
  cuda::ToeplitzPlan plan = cuda::make_toeplitz_plan(args, pass);
  cuda::align_toeplitz_plan(plan, source, target);
  cuda::dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
    host_cuda::launch(
        with_shared(how.launch), cuda::toeplitz_forward<Storage, tiles.value, blocks.value>,
        how.blocks > 0 ? how.blocks : static_cast<unsigned>(cuda::toeplitz_blocks(plan)),
        static_cast<unsigned>(plan.threads()), cuda::toeplitz_shared_bytes(plan), plan, source,
        kernel, bias, target);
  });
}

template <typename Storage>
void kernel_gradient(const HowToRun& how, const ConvArgs& args, const Storage* grad_output,
                     const Storage* input, const std::uint8_t* support, Storage* grad_kernel) {
  cuda::ToeplitzKernelPlan plan = cuda::make_toeplitz_kernel_plan(args);
  cuda::align_toeplitz_plan(plan, input, grad_output);
  cuda::ConvPlan finish = cuda::make_toeplitz_finish_plan(args);
  if (how.splits > 0) finish.splits = plan.splits = std::min(plan.splits, how.splits);
  const std::int64_t cells = finish.kernel_rows * finish.cells;
  GuardedBuffer<float> partial(static_cast<std::size_t>(plan.splits * cells), "partial");
  GuardedBuffer<float> bias(static_cast<std::size_t>(plan.splits * plan.channels), "bias");
  cuda::dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
    host_cuda::launch(
        with_shared(how.launch), cuda::toeplitz_kernel_partial<Storage, tiles.value, blocks.value>,
        how.blocks > 0 ? how.blocks : static_cast<unsigned>(cuda::toeplitz_blocks(plan)),
        static_cast<unsigned>(plan.threads()), cuda::toeplitz_shared_bytes(plan), plan, input,
        grad_output, partial.data(), bias.data());
  });
  partial.check(), bias.check();
  host_cuda::launch(how.launch, cuda::conv_kernel_finish<Storage>,
                    static_cast<unsigned>(cuda::divide_up(cells, cuda::kFinishThreads)),
                    cuda::kFinishThreads, 0, args, finish,
                    static_cast<const float*>(partial.data()), support, grad_output, input,
                    grad_kernel);
}

template <typename Storage>
ConvResults on_host_cuda(const ConvProblem& problem, const HowToRun& how = {}) {
  ConvArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  REQUIRE(cuda::toeplitz_covers(args));
  const GuardedBuffer<Storage> input(problem.store<Storage>(problem.input, args.in_channels),
                                     "input");
  const GuardedBuffer<Storage> grad_output(
      problem.store<Storage>(problem.grad_output, args.out_channels), "grad_output");
  const GuardedBuffer<Storage> kernel(to_storage<Storage>(problem.kernel), "kernel");
  const GuardedBuffer<Storage> bias(to_storage<Storage>(problem.bias), "bias");
  GuardedBuffer<Storage> output(grad_output.size(), "output");
  GuardedBuffer<Storage> grad_input(input.size(), "grad_input");
  convolve<Storage>(how, args, ConvPass::kForward, input.data(), kernel.data(), bias.data(),
                    output.data());
  convolve<Storage>(how, args, ConvPass::kBackwardInput, grad_output.data(), kernel.data(), nullptr,
                    grad_input.data());
  const GuardedBuffer<std::uint8_t> support(problem.support, "support");
  GuardedBuffer<Storage> grad_kernel(kernel.size(), "grad_kernel");
  kernel_gradient<Storage>(how, args, grad_output.data(), input.data(), support.data(),
                           grad_kernel.data());
  output.check(), grad_input.check(), grad_kernel.check();
  return {problem.read(output, args.out_channels), problem.read(grad_input, args.in_channels),
          to_double(grad_kernel)};
}

template <typename Storage>
void check_problem(const ConvProblem& problem, const HowToRun& how = {}) {
  cuda::mended = 0;
  check_results<Storage>(problem, on_host_cuda<Storage>(problem, how));
  CHECK_EQ(cuda::mended.load(), 0);  // all values are finite
}

/// Depthwise, stride 1, of all kinds.
std::vector<ConvArgs> covered_args() {
  std::vector<ConvArgs> cases;
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    const auto add =
        [&](std::int64_t batch, std::int64_t channels, const std::vector<std::int64_t>& size,
            const std::vector<std::int64_t>& kernel, const std::vector<std::int64_t>& padding) {
          cases.push_back(conv_args(batch, channels, channels, channels, size, kernel, padding, {},
                                    {}, layout));
        };
    add(2, 3, {15, 16}, {7, 5}, {3, 2});
    add(3, 2, {14, 14}, {17, 17}, {8, 8});  // several images in a product
    add(5, 9, {7, 7}, {17, 17}, {8, 8});    // slots that are not filled
    add(2, 8, {12, 56}, {5, 23}, {2, 11});  // seven column tiles
    add(1, 1, {9, 70}, {3, 63}, {1, 31});   // two chunks of columns, two groups of tiles
    add(1, 2, {40, 20}, {63, 9}, {31, 4});  // a high kernel: several lots of matrices
    add(1, 16, {11, 13}, {4, 6}, {0, 0});   // no padding, even sizes
    add(1, 1, {20, 12}, {3, 5}, {-2, -1});  // cropping
    add(2, 1, {5, 6}, {9, 11}, {9, 20});    // padding larger than the input
    add(3, 5, {100}, {31}, {15});           // lines
    add(40, 2, {33}, {9}, {0});
    add(40, 1, {7, 7}, {5, 5}, {2, 2});    // several tiles of images, the last one not full
    add(3, 2, {9, 28}, {5, 21}, {2, 10});  // copies of four values
    add(2, 2, {6, 7}, {5, 33}, {4, 20});   // a kernel far wider than the input, at its middle
    add(2, 1, {7, 37}, {3, 29}, {0, 1});   // more columns of the input than the output has
  }
  return cases;
}

}  // namespace

TEST(every_kernel_and_dtype) {
  for (const ConvArgs& args : covered_args()) {
    const ConvProblem problem(args);
    check_problem<Half>(problem);
    check_problem<BFloat16>(problem);
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
      const cuda::ToeplitzPlan plan = cuda::make_toeplitz_plan(args, ConvPass::kForward);
      cuda::dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
        constexpr int kTiles = tiles.value, kBlocks = blocks.value;
        using host_cuda::launch_count;
        CHECK(launch_count(cuda::toeplitz_forward<Half, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_forward<BFloat16, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_kernel_partial<Half, kTiles, kBlocks>) > 0);
        CHECK(launch_count(cuda::toeplitz_kernel_partial<BFloat16, kTiles, kBlocks>) > 0);
        found.emplace(kTiles, kBlocks);
      });
    }
  }
  CHECK_EQ(found.size(), std::size(cuda::kToeplitzColumns));
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
    check_problem<BFloat16>(ConvProblem(args, seed, seed % 3 == 0 ? 0.9 : 0.3));
  }
  CHECK(count > 100);
}

/// Values that are not of few bits: as good as sums in float32 of the same 16-bit values.
template <typename Storage>
void check_errors(const ConvArgs& args) {
  ConvProblem problem(args, 8, 0.3);
  for (auto* values : {&problem.input, &problem.kernel, &problem.grad_output, &problem.bias}) {
    for (std::size_t i = 0; i < values->size(); ++i) {
      (*values)[i] *= 1 + 0.37 * std::sin(static_cast<double>(i));
    }
    *values = to_double(to_storage<Storage>(*values));  // the oracle reads what the kernels read
  }
  const ConvResults got = on_host_cuda<Storage>(problem), exact = problem.by_the_formula();
  ConvProblem in_float = problem;
  const ConvResults plain = in_float.on_cpu<Storage>();  // float32 sums, then rounded
  const check::Case here(problem.name());
  CHECK(relative_error(got.output, exact.output) < 2 * relative_error(plain.output, exact.output));
  CHECK(relative_error(got.grad_input, exact.grad_input) <
        2 * relative_error(plain.grad_input, exact.grad_input));
  CHECK(relative_error(got.grad_kernel, exact.grad_kernel) <=
        2 * relative_error(plain.grad_kernel, exact.grad_kernel));
}
TEST(errors_are_those_of_float32_sums) {
  for (const ConvArgs& args : covered_args()) {
    check_errors<Half>(args);
    check_errors<BFloat16>(args);
  }
}

TEST(infinite_values_reach_what_they_meet) {
  for (const ConvArgs& args : covered_args()) {
    if (args.batch * args.groups * args.kernel_size[0] > 60) continue;  // minutes
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<BFloat16>(p); });
  }
}

TEST(zero_cells_meet_no_infinity) {
  ConvProblem problem(conv_args(1, 1, 1, 1, {8, 9}, {3, 3}, {1, 1}), 6, 1.0);
  for (double& w : problem.kernel) w = 0;
  problem.kernel[4] = 2;
  problem.input[0] = HUGE_VAL;
  const ConvResults got = on_host_cuda<Half>(problem);
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    CHECK_EQ(got.output[i], problem.input[i] * 2 + problem.bias[0]);
  }
  problem.kernel[0] = std::nan("");
  for (const double value : on_host_cuda<Half>(problem).output) CHECK(value != value);
}

TEST(fewer_blocks_than_work) {
  HowToRun how;
  for (const unsigned blocks : {2u, 1u}) {
    how.blocks = blocks;
    how.splits = static_cast<int>(blocks);  // of several tiles
    for (const ConvArgs& args : covered_args()) {
      check_problem<BFloat16>(ConvProblem(args, blocks), how);
    }
  }
}

TEST(bitwise_equal_in_every_order_of_threads) {
  for (const ConvArgs& args : covered_args()) {
    if (args.kernel_size[0] > 20) continue;  // they are slow, and use no other barriers
    ConvProblem problem(args, 5);
    for (double& v : problem.input) v = v / 3;  // sums that are rounded
    const ConvResults first = on_host_cuda<BFloat16>(problem);
    host_cuda::in_all_schedules([&](const LaunchOptions& options) {
      HowToRun how;
      how.launch = options;
      const ConvResults other = on_host_cuda<BFloat16>(problem, how);
      CHECK_SAME_BITS(other.output, first.output);
      CHECK_SAME_BITS(other.grad_input, first.grad_input);
      CHECK_SAME_BITS(other.grad_kernel, first.grad_kernel);
    });
  }
}

TEST(tensors_at_any_address) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    ConvArgs args = conv_args(2, 8, 8, 8, {6, 16}, {3, 5}, {1, 2}, {}, {}, layout);
    args.dtype = DType::kBFloat16;
    const ConvProblem problem(args);
    const auto kernel = to_storage<BFloat16>(problem.kernel);
    const auto input = problem.store<BFloat16>(problem.input, 8);
    std::vector<double> first;
    for (std::size_t shift = 0; shift < 4; ++shift) {
      std::vector<BFloat16> from(shift);
      from.insert(from.end(), input.begin(), input.end());
      const GuardedBuffer<BFloat16> source(from, "input");
      GuardedBuffer<BFloat16> target(shift + input.size(), "output");
      const GuardedBuffer<BFloat16> cells(kernel, "kernel");
      convolve<BFloat16>({}, args, ConvPass::kForward, source.data() + shift, cells.data(), nullptr,
                         target.data() + shift);
      std::vector<double> got;
      for (std::size_t i = shift; i < target.size(); ++i)
        got.push_back(numeric::load(target.data()[i]));
      if (shift == 0) first = got;
      CHECK_SAME_BITS(got, first);
    }
  }
}

namespace {

/// Wavefronts of a load of 8 rows of 16 bytes at these places, in values: rows in the same banks
/// are read one after another.
int wavefronts(const std::vector<int>& places) {
  int most = 0;
  for (int bank = 0; bank < 8; ++bank) {
    std::vector<int> different;
    for (const int place : places) {
      if (place / cuda::kBlock % 8 == bank) different.push_back(place);
    }
    std::sort(different.begin(), different.end());
    different.erase(std::unique(different.begin(), different.end()), different.end());
    most = std::max(most, static_cast<int>(different.size()));
  }
  return most;
}

}  // namespace

TEST(plans_fit_and_have_no_bank_conflicts) {
  for (const std::int64_t kernel : {3, 7, 17, 23, 31, 63}) {
    for (const std::int64_t size : {1, 7, 10, 14, 28, 56, 100, 224, 4096}) {
      for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
        for (const std::int64_t batch : {1, 5, 128}) {
          ConvArgs args = conv_args(batch, 96, 96, 96, {size, size}, {kernel, kernel},
                                    {kernel / 2, kernel / 2}, {}, {}, layout);
          args.dtype = DType::kBFloat16;
          for (const ConvPass pass : {ConvPass::kForward, ConvPass::kBackwardInput}) {
            const cuda::ToeplitzPlan plan = cuda::make_toeplitz_plan(args, pass);
            REQUIRE(plan.slots > 0 && plan.slot_warps > 0);
            CHECK(plan.threads() <= cuda::kToeplitzThreads);
            CHECK(cuda::toeplitz_shared_bytes(plan) <= cuda::kToeplitzShared);
            CHECK(plan.planes * plan.rows <= plan.slot_warps * cuda::kWarpRows);
            for (int row = 0; row < plan.slot_warps * cuda::kWarpRows; row += 8) {
              std::vector<int> places;
              for (int i = row; i < row + 8; ++i) {
                const int m = cuda::existing_row(i, plan.planes * plan.rows);
                places.push_back(m / plan.rows * plan.plane_pitch + m % plan.rows * plan.pitch);
              }
              CHECK(wavefronts(places) <= (plan.planes * plan.rows < 8 ? 2 : 1));
            }
          }
        }
      }
    }
  }
}

CHECK_MAIN()
