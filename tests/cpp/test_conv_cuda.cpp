// The CUDA kernels of the direct convolution, run on the host, against plain loops.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "core/dispatch.hpp"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/conv/conv_forward.cuh"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda_host/schedules.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

namespace {

struct HowToRun {
  LaunchOptions launch = {};
  unsigned blocks = 0;  ///< 0 for one per item, as the library launches
  bool all_cells = false;
};

unsigned grid(const HowToRun& how, std::int64_t items) {
  return how.blocks > 0 ? how.blocks : static_cast<unsigned>(items);
}

/// A workspace of exactly the parts that the library lays into one.
template <typename Packed, typename T>
struct Lists {
  GuardedBuffer<std::int32_t> counts;
  GuardedBuffer<cuda::Unit> units;
  GuardedBuffer<Packed> packed;
  GuardedBuffer<T> partial;

  static std::size_t lists(const cuda::ConvPlan& plan) {
    return static_cast<std::size_t>(plan.kernel_rows * plan.stages);
  }
  static std::size_t room(const cuda::ConvPlan& plan) {
    return lists(plan) * static_cast<std::size_t>(plan.stage_cells);
  }
  Lists(const cuda::ConvPlan& plan, std::size_t partials)
      : counts(lists(plan), "counts"),
        units(room(plan), "units"),
        packed(room(plan), "packed"),
        partial(partials, "partial") {}

  template <typename Cell>
  void fill(const HowToRun& how, const cuda::ConvPlan& plan, const Cell* cells) {
    if (counts.size() == 0) return;
    const std::int64_t warps = cuda::kListThreads / cuda::kWarp;
    host_cuda::launch(how.launch, cuda::conv_list_units<Cell, Packed>,
                      grid(how, cuda::divide_up(plan.kernel_rows * plan.stages, warps)),
                      cuda::kListThreads, 0, plan, cells, counts.data(), units.data(),
                      packed.data());
    counts.check(), units.check(), packed.check();
  }
};

template <typename Storage, bool kLine>
void correlate(const HowToRun& how, const ConvArgs& args, ConvPass pass, const Storage* source,
               const Storage* kernel, const Storage* bias, Storage* target) {
  using T = Compute<Storage>;
  const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
  Lists<T, T> lists(plan, 0);
  lists.fill(how, plan, kernel);
  LaunchOptions options = how.launch;
  options.max_block_threads = cuda::kConvThreads;
  host_cuda::launch(options, cuda::conv_forward<Storage, kLine>,
                    grid(how, plan.channel_blocks * plan.phases * plan.tiles),
                    static_cast<unsigned>(plan.threads()),
                    cuda::conv_shared_bytes(plan, pass, args.dtype), plan, source,
                    static_cast<const std::int32_t*>(lists.counts.data()),
                    static_cast<const cuda::Unit*>(lists.units.data()),
                    static_cast<const T*>(lists.packed.data()), bias, target);
}

template <typename Storage, bool kLine>
void kernel_gradient(const HowToRun& how, const ConvArgs& args, const Storage* grad_output,
                     const Storage* input, const std::uint8_t* support, Storage* grad_kernel) {
  using T = Compute<Storage>;
  const ConvPass pass = ConvPass::kBackwardKernel;
  const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
  const std::int64_t cells = plan.kernel_rows * plan.cells;
  Lists<std::uint32_t, T> lists(plan, static_cast<std::size_t>(plan.splits * cells));
  if (plan.splits > 0) {
    lists.fill(how, plan, support);
    LaunchOptions options = how.launch;
    options.max_block_threads = cuda::kConvKernelThreads;
    host_cuda::launch(
        options, cuda::conv_kernel_partial<Storage, kLine>,
        grid(how, plan.channel_blocks * plan.source_per_group * plan.stages * plan.splits),
        static_cast<unsigned>(plan.threads()), cuda::conv_shared_bytes(plan, pass, args.dtype),
        plan, input, grad_output, static_cast<const std::int32_t*>(lists.counts.data()),
        static_cast<const cuda::Unit*>(lists.units.data()),
        static_cast<const std::uint32_t*>(lists.packed.data()),
        cuda::conv_tile_bytes(plan, args.dtype), lists.partial.data(), static_cast<T*>(nullptr));
    lists.partial.check();
  }
  host_cuda::launch(how.launch, cuda::conv_kernel_finish<Storage>,
                    grid(how, cuda::divide_up(cells, cuda::kFinishThreads)), cuda::kFinishThreads,
                    0, args, plan, static_cast<const T*>(lists.partial.data()), support,
                    grad_output, input, grad_kernel);
}

template <typename Storage>
ConvResults on_host_cuda(const ConvProblem& problem, const HowToRun& how = {}) {
  ConvArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  const GuardedBuffer<Storage> input(problem.store<Storage>(problem.input, args.in_channels),
                                     "input");
  const GuardedBuffer<Storage> grad_output(
      problem.store<Storage>(problem.grad_output, args.out_channels), "grad_output");
  const GuardedBuffer<Storage> kernel(to_storage<Storage>(problem.kernel), "kernel");
  const GuardedBuffer<Storage> bias(to_storage<Storage>(problem.bias), "bias");
  const GuardedBuffer<std::uint8_t> support(problem.support, "support");
  GuardedBuffer<Storage> output(grad_output.size(), "output");
  GuardedBuffer<Storage> grad_input(input.size(), "grad_input");
  GuardedBuffer<Storage> grad_kernel(kernel.size(), "grad_kernel");
  const auto run = [&](auto line) {
    if (output.size() > 0) {
      correlate<Storage, line.value>(how, args, ConvPass::kForward, input.data(), kernel.data(),
                                     bias.data(), output.data());
    }
    if (grad_input.size() > 0) {
      correlate<Storage, line.value>(how, args, ConvPass::kBackwardInput, grad_output.data(),
                                     kernel.data(), nullptr, grad_input.data());
    }
    if (grad_kernel.size() > 0) {
      kernel_gradient<Storage, line.value>(how, args, grad_output.data(), input.data(),
                                           how.all_cells ? nullptr : support.data(),
                                           grad_kernel.data());
    }
  };
  if (args.ndim == 1) {
    run(std::true_type{});
  } else {
    run(std::false_type{});
  }
  output.check(), grad_input.check(), grad_kernel.check();
  return {problem.read(output, args.out_channels), problem.read(grad_input, args.in_channels),
          to_double(grad_kernel)};
}

template <typename Storage>
void check_problem(const ConvProblem& problem, const HowToRun& how = {}) {
  check_results<Storage>(problem, on_host_cuda<Storage>(problem, how));
}

}  // namespace

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
    check_infinities(
        args, [](const ConvProblem& p) { return on_host_cuda<float>(p); }, /*weights=*/false);
  }
}

/// Blocks visit the stages of their phase alone: their number does not grow with its square.
TEST(stages_of_a_phase) {
  for (const ConvArgs& args : many_phases()) {
    const cuda::ConvPlan plan = cuda::make_conv_plan(args, ConvPass::kBackwardInput);
    std::vector<int> visits(static_cast<std::size_t>(plan.stages));
    for (std::int64_t phase = 0; phase < plan.phases; ++phase) {
      cuda::BlockPlace block;
      if (args.ndim == 1) {
        block.find<true>(plan, phase * plan.tiles);
      } else {
        block.find<false>(plan, phase * plan.tiles);
      }
      for (std::int64_t n = 0; n < block.stages; ++n) {
        const std::int64_t stage = block.stage(plan, n);
        REQUIRE(stage >= 0 && stage < plan.stages);
        ++visits[static_cast<std::size_t>(stage)];
        cuda::StageCells cells;
        cells.find(plan, stage, block.phase);
        // Of the phase; it may still have no cell that reads anything.
        CHECK(cells.used || cells.y.count == 0 || cells.x.count == 0);
      }
    }
    for (const int count : visits) CHECK(count <= 1);
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
      const ConvResults other = on_host_cuda<float>(problem, how);
      CHECK_SAME_BITS(other.output, first.output);
      CHECK_SAME_BITS(other.grad_input, first.grad_input);
      CHECK_SAME_BITS(other.grad_kernel, first.grad_kernel);
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

TEST(plans_fit) {
  // Every block has threads, shared memory that any GPU gives, and a workspace that is not absurd.
  const auto check_plan = [](ConvArgs args) {
    for (int dtype = 0; dtype < kDTypeCount; ++dtype) {
      args.dtype = static_cast<DType>(dtype);
      for (const ConvPass pass :
           {ConvPass::kForward, ConvPass::kBackwardInput, ConvPass::kBackwardKernel}) {
        const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
        CHECK(plan.threads() >= cuda::kWarp);
        CHECK(plan.threads() <=
              (pass == ConvPass::kBackwardKernel ? cuda::kConvKernelThreads : cuda::kConvThreads));
        CHECK(cuda::conv_shared_bytes(plan, pass, args.dtype) <= cuda::kConvShared);
        CHECK(plan.slots >= 1 && plan.patches >= 1 && plan.strips >= 1 && plan.planes >= 1);
        CHECK(plan.planes <= cuda::kMostPlanes);
        CHECK(plan.stage_cells <= 65536);
        CHECK_EQ(cuda::conv_workspace(plan, pass, args.dtype).total() % 256, 0u);
        const bool of_input = pass == ConvPass::kBackwardInput;
        const auto& target = of_input ? args.input_size : args.output_size;
        if (args.batch * ConvProblem::points(target, args.ndim) == 0) CHECK_EQ(plan.tiles, 0);
        CHECK(plan.splits <= plan.tiles);
      }
    }
  };
  for (unsigned seed = 0; seed < 2000; ++seed) {
    ConvArgs args = random_conv_args(seed);
    check_plan(args);
    for (int d = 0; d < args.ndim; ++d) {
      for (std::int64_t* size : {&args.input_size[d], &args.output_size[d]}) {
        const std::int64_t former = std::exchange(*size, 0);
        check_plan(args);
        *size = former;
      }
    }
  }
  for (const std::int64_t kernel : {1, 7, 17, 23, 64, 129, 1000}) {
    for (const std::int64_t size : {1, 7, 14, 56, 224, 4096}) {
      for (const std::int64_t dilation : {1, 3, 64, 100000}) {
        for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
          for (const std::size_t axes : {1u, 2u}) {
            using Sizes = std::vector<std::int64_t>;
            const Sizes k(axes, kernel), s(axes, size), p(axes, dilation * (kernel / 2)),
                d(axes, dilation);
            check_plan(conv_args(128, 96, 96, 96, s, k, p, {}, d, layout));
            check_plan(conv_args(2, 96, 192, 2, s, k, p, d, {}, layout));
          }
        }
      }
    }
  }
}

TEST(stages_are_full) {
  // Of a kernel that is cut, every part has its room in the workspace.
  for (const std::int64_t kernel : {33, 65, 66, 129, 160, 500}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
      ConvArgs args = conv_args(8, 16, 16, 16, {700, 700}, {kernel, kernel});
      args.dtype = dtype;
      for (const ConvPass pass :
           {ConvPass::kForward, ConvPass::kBackwardInput, ConvPass::kBackwardKernel}) {
        const check::Case here("kernel ", kernel, ", pass ", static_cast<int>(pass));
        const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
        CHECK(plan.stages * plan.stage_cells <= plan.cells * 5 / 4);
      }
    }
  }
}

TEST(lanes_of_common_layers_are_busy) {
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    for (const std::int64_t size : {56, 28, 14, 7}) {
      for (const std::int64_t kernel : {7, 17, 23}) {
        for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
          const std::int64_t channels = 96 * 56 / size, pad = kernel / 2;
          ConvArgs args = conv_args(128, channels, channels, channels, {size, size},
                                    {kernel, kernel}, {pad, pad}, {}, {}, layout);
          args.dtype = dtype;
          for (const ConvPass pass :
               {ConvPass::kForward, ConvPass::kBackwardInput, ConvPass::kBackwardKernel}) {
            const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
            const check::Case here(ConvProblem(conv_args(1, 1, 1, 1, {size}, {kernel})).name(),
                                   ", channels ", channels, ", pass ", static_cast<int>(pass));
            CHECK(plan.planes * plan.strips * plan.patches * 8 >= plan.slot_threads * 5);
            CHECK(plan.channel_blocks * plan.tiles >= 1000);
          }
        }
      }
    }
  }
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
  Lists<float, float> lists(plan, 0);
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
