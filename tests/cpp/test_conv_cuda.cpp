// The CUDA kernels of the direct convolution, run on the host, against plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "conv_on_host_cuda.hpp"
#include "conv_problem.hpp"
#include "core/dispatch.hpp"
#include "cuda_host/schedules.hpp"
#include "list_limit.hpp"

using namespace dcls;
using namespace dcls::test;

TEST(every_kernel_and_dtype) {
  for (const ConvArgs& args : typical_conv_args()) {
    const ConvProblem problem(args);
    check_problem<float>(problem);
    check_problem<double>(problem);
    check_problem<Half>(problem);
    check_problem<BFloat16>(problem);
  }
}

TEST(random_geometries) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    const check::Case here("seed ", seed);
    const ConvProblem problem(random_conv_args(seed), seed, seed % 3 == 0 ? 0.9 : 0.3);
    check_problem<double>(problem);
  }
}

TEST(edges) {
  const Layout last = Layout::kChannelsLast;
  const std::vector<ConvArgs> cases = {
      conv_args(1, 2, 2, 2, {1, 1}, {5, 5}, {2, 2}),                // one pixel
      conv_args(1, 2, 2, 1, {3}, {9}, {8}),                         // kernel larger than the input
      conv_args(1, 1, 1, 1, {4, 4}, {3, 3}, {9, 20}),               // padding larger than the input
      conv_args(1, 1, 1, 1, {9, 9}, {3, 3}, {-2, -1}),              // cropping
      conv_args(1, 2, 2, 2, {20, 20}, {2, 3}, {0, 0}, {7, 5}),      // strides that skip points
      conv_args(1, 1, 1, 1, {30, 31}, {3, 3}, {0, 0}, {}, {9, 4}),  // dilations
      conv_args(2, 1, 1, 1, {16, 16}, {4, 4}, {0, 0}, {4, 4}),      // patches
      conv_args(1, 1, 1, 1, {3000}, {3}, {0}, {}, {1000}),          // a halo longer than a tile
      conv_args(1, 1, 1, 1, {90}, {700}, {350}),                    // chunks of a long kernel
      conv_args(1, 1, 1, 1, {20, 20}, {80, 90}, {40, 45}),          // the same on two axes
      conv_args(1, 1, 1, 1, {2, 150}, {1, 70}, {0, 35}),            // two groups of lanes of cells
      conv_args(70, 1, 1, 1, {3, 3}, {3, 3}, {1, 1}),    // more planes than a block takes
      conv_args(1, 1, 1, 1, {60, 200}, {3, 5}, {1, 2}),  // several tiles
      conv_args(2, 17, 17, 17, {8, 9}, {5, 5}, {2, 2}, {}, {}, last),  // slots that are not filled
      conv_args(1, 21, 19, 1, {7}, {3}, {1}),                          // the same of a dense kernel
  };
  for (const ConvArgs& args : cases) check_problem<double>(ConvProblem(args));
  ConvArgs far = conv_args(1, 1, 1, 1, {9, 200}, {2, 64}, {0, 32}, {}, {1 << 24, 1});
  far.output_size[0] = 9;  // a row of cells that reads, and one that does not
  check_problem<double>(ConvProblem(far));
  for (const ConvArgs& args : far_strides()) check_problem<double>(ConvProblem(args));
  for (const ConvArgs& args : empty_conv_args()) check_problem<double>(ConvProblem(args));
}

TEST(many_phases) {
  for (const ConvArgs& args : many_phases()) check_problem<double>(ConvProblem(args));
}

TEST(infinite_values_reach_what_they_meet) {
  for (const ConvArgs& args : typical_conv_args()) {
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<float>(p); });
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<double>(p); });
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<BFloat16>(p); });
  }
  for (const ConvArgs& args : {conv_args(1, 2, 2, 2, {40, 33}, {70, 11}, {35, 5}),
                               conv_args(1, 3, 5, 1, {9, 8}, {3, 3}, {1, 1}, {2, 1}, {2, 3}),
                               conv_args(1, 1, 1, 1, {90}, {700}, {350})}) {
    check_infinities(args, [](const ConvProblem& p) { return on_host_cuda<float>(p); });
  }
}

TEST(sparse_and_dense_kernels) {
  for (const double density : {0.0, 0.02, 0.5, 1.0}) {
    const check::Case here("density ", density);
    check_problem<double>(
        ConvProblem(conv_args(1, 2, 2, 2, {18, 19}, {11, 40}, {5, 20}), 1, density));
    check_problem<double>(ConvProblem(conv_args(2, 2, 2, 2, {90}, {129}, {64}), 2, density));
  }
}

/// Some splits of the kernel's gradient have one tile more than others.
TEST(lists_in_parts) {
  // Bit for bit, since each block does what it did. Without room for anything, a part is a block.
  const auto check = [](const ConvArgs& args, unsigned seed, std::size_t bytes) {
    const ConvProblem problem(args, seed);
    const check::Case here(problem.name(), ", seed ", seed, ", bytes ", bytes);
    const ConvResults whole = on_host_cuda<float>(problem);
    const ListLimit limit(bytes);
    const ConvResults parts = on_host_cuda<float>(problem);
    CHECK_SAME_BITS(parts.output, whole.output);
    CHECK_SAME_BITS(parts.grad_input, whole.grad_input);
    CHECK_SAME_BITS(parts.grad_kernel, whole.grad_kernel);
  };
  for (const ConvArgs& args : typical_conv_args()) check(args, 1, 0);
  for (unsigned seed = 400; seed < 430; ++seed) check(random_conv_args(seed), seed, 20000);
  // Two groups of five channels into six: two blocks of each, for both passes.
  ConvArgs args = conv_args(2, 10, 12, 2, {5, 5}, {9, 9}, {2, 2});
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    args.layout = layout;
    const auto before = host_cuda::launch_count(cuda::conv_list_units<float, float>);
    check(args, 1, 0);
    const auto count = host_cuda::launch_count(cuda::conv_list_units<float, float>) - before;
    CHECK_EQ(count, std::uint64_t{2 + 4 + 4});  // 2 of the whole
  }
}

TEST(splits_of_unequal_length) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    ConvArgs args = conv_args(1, 800, 800, 800, {2}, {3}, {1}, {}, {}, layout);
    const auto remainder = [&] {
      const cuda::ConvPlan plan = cuda::make_conv_plan(args, ConvPass::kBackwardKernel);
      return plan.tiles % plan.splits;
    };
    while (args.batch < 1000 && remainder() == 0) ++args.batch;
    CHECK(remainder() != 0);
    check_problem<float>(ConvProblem(args));
  }
}

/// Rows and planes whose zeros lie on those of the next: what is read at their ends is read twice.
TEST(planes_that_share_their_zeros) {
  for (const std::int64_t size : {5, 7, 14, 28}) {
    for (const std::int64_t kernel : {6, 17}) {
      for (const std::int64_t padding : {std::int64_t{0}, std::int64_t{2}, kernel / 2, kernel}) {
        if (size + 2 * padding < kernel) continue;
        const std::int64_t batch = 200 / size;
        check_problem<float>(ConvProblem(
            conv_args(batch, 2, 2, 2, {size, size + 1}, {kernel, kernel}, {padding, padding}), 8));
        check_problem<double>(
            ConvProblem(conv_args(batch, 2, 2, 2, {size}, {kernel}, {padding}), 8));
      }
    }
  }
}

TEST(gradient_of_all_cells) {
  for (ConvArgs args : typical_conv_args()) {
    ConvProblem problem(args);
    std::fill(problem.support.begin(), problem.support.end(), std::uint8_t{1});
    HowToRun how;
    how.all_cells = true;
    check_problem<double>(problem, how);
  }
}

TEST(fewer_blocks_than_work) {
  HowToRun how;
  how.blocks = 2;
  for (const ConvArgs& args : typical_conv_args()) check_problem<double>(ConvProblem(args, 3), how);
  how.blocks = 1;
  for (const ConvArgs& args : typical_conv_args()) check_problem<float>(ConvProblem(args, 4), how);
}

TEST(bitwise_equal_in_every_order_of_threads) {
  for (const ConvArgs& args : typical_conv_args()) {
    ConvProblem problem(args, 5);
    for (double& v : problem.input) v = v / 3;  // sums that are rounded
    const ConvResults first = on_host_cuda<float>(problem);
    host_cuda::in_all_schedules([&](const LaunchOptions& options) {
      HowToRun how;
      how.launch = options;
      check_same_bits(on_host_cuda<float>(problem, how), first);
    });
  }
}

TEST(zero_cells_are_not_visited_and_nan_cells_are) {
  ConvProblem problem(conv_args(1, 1, 1, 1, {8, 9}, {3, 3}, {1, 1}), 6, 1.0);
  for (double& w : problem.kernel) w = 0;
  problem.kernel[4] = 2;
  problem.input[0] = HUGE_VAL;
  const ConvResults got = on_host_cuda<float>(problem);
  for (std::size_t i = 0; i < got.output.size(); ++i) {
    CHECK_EQ(got.output[i], problem.input[i] * 2 + problem.bias[0]);
  }
  problem.kernel[0] = std::nan("");
  for (const double value : on_host_cuda<Half>(problem).output) CHECK(value != value);
}

TEST(past_2_to_the_31_values) {
  // 3 * 2^30 values; only the blocks of the last plane are run.
  ConvArgs args = conv_args(3, 1, 1, 1, {1 << 15, 1 << 15}, {3, 3}, {1, 1});
  args.dtype = DType::kFloat16;
  const std::size_t total = std::size_t{3} << 30;
  const std::size_t last = total - 1;
  auto input = GuardedBuffer<Half>::sparse(total, "input");
  auto output = GuardedBuffer<Half>::sparse(total, "output");
  numeric::store(&input[last], 2.0f);
  std::vector<double> cells(9, 0.0);
  cells[4] = 3;
  cells[8] = 5;  // outside at the last point
  const GuardedBuffer<Half> kernel(to_storage<Half>(cells), "kernel");
  const cuda::ConvPlan plan = cuda::make_conv_plan(args, ConvPass::kForward);
  Lists<float> lists(plan);
  lists.fill({}, plan, kernel.data());
  LaunchOptions options;
  options.first_block = static_cast<std::uint64_t>(plan.tiles) - 1;
  options.block_count = 1;
  host_cuda::launch(options, cuda::conv_forward<Half, false>, static_cast<unsigned>(plan.tiles),
                    static_cast<unsigned>(plan.threads()),
                    cuda::conv_shared_bytes(plan, ConvPass::kForward, args.dtype), plan,
                    static_cast<const Half*>(input.data()),
                    static_cast<const std::int32_t*>(lists.counts.data()),
                    static_cast<const cuda::Unit*>(lists.units.data()),
                    static_cast<const float*>(lists.packed.data()),
                    static_cast<const Half*>(nullptr), output.data());
  CHECK_EQ(numeric::load(output[last]), 6.0f);
  CHECK_EQ(numeric::load(output[last - (1 << 15) - 1]), 10.0f);
  CHECK_EQ(numeric::load(output[last - 1]), 0.0f);
}

TEST(all_instantiated_kernels_were_run) {
  // The list of src/cuda/conv/conv_launch.cuh.
  for (int dtype = 0; dtype < kDTypeCount; ++dtype) {
    dispatch_dtype(static_cast<DType>(dtype), [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      using T = Compute<Storage>;
      CHECK(host_cuda::launch_count(cuda::conv_list_units<Storage, T>) > 0);
      CHECK(host_cuda::launch_count(cuda::conv_forward<Storage, true>) > 0);
      CHECK(host_cuda::launch_count(cuda::conv_forward<Storage, false>) > 0);
      CHECK(host_cuda::launch_count(cuda::conv_kernel_partial<Storage, true>) > 0);
      CHECK(host_cuda::launch_count(cuda::conv_kernel_partial<Storage, false>) > 0);
      CHECK(host_cuda::launch_count(cuda::conv_kernel_finish<Storage>) > 0);
    });
  }
  CHECK(host_cuda::launch_count(cuda::conv_list_units<std::uint8_t, std::uint32_t>) > 0);
}

CHECK_MAIN()
