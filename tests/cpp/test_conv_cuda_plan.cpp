// The plans of the direct convolution on CUDA.
#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "cuda/conv/conv_forward.cuh"
#include "cuda/conv/conv_make_plan.hpp"
#include "list_limit.hpp"

using namespace dcls;
using namespace dcls::test;

TEST(stages_of_a_phase) {
  for (const ConvArgs& args : many_phases()) {
    const cuda::ConvPlan plan = cuda::make_conv_plan(args, ConvPass::kBackwardInput);
    std::vector<int> visits(static_cast<std::size_t>(plan.stages));
    for (std::int64_t phase = 0; phase < plan.phases; ++phase) {
      cuda::BlockPlace block;
      const std::int64_t item = phase * plan.tiles * (plan.channels_last ? plan.channel_blocks : 1);
      if (args.ndim == 1) {
        block.find<true>(plan, item);
      } else {
        block.find<false>(plan, item);
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

TEST(parts_of_lists) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    const check::Case here("seed ", seed);
    const ConvArgs args = random_conv_args(seed);
    for (const ConvPass pass :
         {ConvPass::kForward, ConvPass::kBackwardInput, ConvPass::kBackwardKernel}) {
      const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
      // Each row of the kernel has a row of the lists of its own.
      for (std::int64_t row = 0; row < plan.kernel_rows; ++row) {
        std::int64_t target = cuda::list_row(plan, row);
        const std::int64_t n = geometry::take(target, plan.source_per_group);
        CHECK_EQ(cuda::kernel_row(plan, target, n), row);
      }
      for (const std::size_t bytes : {std::size_t{0}, std::size_t{30000}, std::size_t{1} << 40}) {
        const ListLimit limit(bytes);
        std::int64_t blocks = 0, rows = 0, parts = 0;
        cuda::for_parts(plan, args.dtype, [&](const cuda::ConvPlan& part) {
          CHECK_EQ(part.first_block, blocks);
          CHECK_EQ(part.first_list_row, rows);
          CHECK(part.channel_blocks > 0);
          blocks += part.channel_blocks;
          rows += part.list_rows;
          ++parts;
          const std::size_t size = cuda::list_bytes_of(part, part.list_rows, args.dtype).lists();
          CHECK(size <= bytes || part.channel_blocks == 1);
          CHECK(size <= cuda::conv_workspace(plan, pass, args.dtype).lists());
        });
        CHECK_EQ(blocks, plan.channel_blocks);
        CHECK_EQ(rows, plan.channel_blocks > 0 ? plan.kernel_rows : 0);
        if (bytes > 30000) CHECK(parts <= 1);
      }
    }
  }
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
        CHECK(plan.threads() <= cuda::kConvThreads);
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

/// Wavefronts of the loads of a block, those of one value by all its warps: the words that the most
/// wanted bank of each warp has to give. Lanes without a patch read as they do in the kernels.
int wavefronts(const cuda::ConvPlan& plan) {
  const int patches = plan.planes * plan.strips * plan.patches;
  int sum = 0;
  for (int first = 0; first < plan.slot_threads; first += cuda::kWarp) {
    std::vector<std::set<int>> words(cuda::kWarp);
    for (int thread = first; thread < first + cuda::kWarp; ++thread) {
      const int patch = thread < patches ? thread : first;
      const int across = patch % plan.patches, strip = patch / plan.patches % plan.strips,
                plane = patch / plan.patches / plan.strips;
      const int word = plane * plan.plane_size + strip * 7 * plan.pitch + across * 7;
      words[static_cast<std::size_t>(word % cuda::kWarp)].insert(word);
    }
    std::size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    sum += static_cast<int>(most);
  }
  return sum;
}

TEST(lanes_read_different_banks) {
  const std::vector<std::pair<std::int64_t, double>> bounds = {
      {56, 1.1}, {28, 1.1}, {14, 1.3}, {7, 1.1}};
  for (const auto& [size, bound] : bounds) {
    for (const std::int64_t kernel : {7, 17, 23}) {
      const std::int64_t channels = 96 * 56 / size, pad = kernel / 2;
      ConvArgs args =
          conv_args(128, channels, channels, channels, {size, size}, {kernel, kernel}, {pad, pad});
      for (const ConvPass pass :
           {ConvPass::kForward, ConvPass::kBackwardInput, ConvPass::kBackwardKernel}) {
        const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
        const check::Case here("size ", size, ", kernel ", kernel, ", pass ",
                               static_cast<int>(pass));
        const double warps = plan.slot_threads / cuda::kWarp;
        CHECK(wavefronts(plan) <= bound * warps);
        CHECK_EQ(cuda::conv_wavefronts<false>(plan, 4), wavefronts(plan));
      }
    }
  }
}

/// The zeros around small planes are shared: most of a tile would be zeros else.
TEST(small_planes_lie_close_together) {
  for (const auto& [size, least] :
       std::vector<std::pair<std::int64_t, int>>{{7, 13}, {14, 22}, {28, 36}}) {
    const ConvArgs args = conv_args(128, 96, 96, 96, {size, size}, {17, 17}, {8, 8});
    const cuda::ConvPlan plan = cuda::make_conv_plan(args, ConvPass::kForward);
    CHECK(plan.planes > 1);
    CHECK(plan.pitch <= least + 1);
    CHECK(plan.plane_size <= (least + 1) * (least + 1));
  }
}

CHECK_MAIN()
