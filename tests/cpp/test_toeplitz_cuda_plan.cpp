// The plans of the convolution on tensor cores, and which layers they are for.
#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "cuda/conv/toeplitz_launch.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "cuda/layer/layer_plan.hpp"

using namespace dcls;
using namespace dcls::test;

TEST(float32_is_covered_only_where_it_may_be_rounded) {
  ConvArgs args = conv_args(2, 8, 8, 8, {6, 16}, {3, 5}, {1, 2});
  CHECK(!args.allow_tf32);
  CHECK(!cuda::toeplitz_covers(args));
  args.allow_tf32 = true;
  CHECK(cuda::toeplitz_covers(args));
  args.dtype = DType::kFloat64;
  CHECK(!cuda::toeplitz_covers(args));
}

TEST(tf32_only_on_gpus_where_it_is_faster) {
  const auto pays = cuda::tensor_cores_pay;
  CHECK(pays(DType::kFloat32, 8, 0) && pays(DType::kFloat32, 9, 0));
  CHECK(pays(DType::kFloat32, 10, 0) && pays(DType::kFloat32, 10, 3));
  CHECK(!pays(DType::kFloat32, 7, 5) && !pays(DType::kFloat32, 8, 6));
  CHECK(!pays(DType::kFloat32, 8, 9) && !pays(DType::kFloat32, 12, 0));
  CHECK(pays(DType::kBFloat16, 8, 9) && pays(DType::kFloat16, 12, 0));
  CHECK(!pays(DType::kBFloat16, 7, 5) && !pays(DType::kFloat16, 7, 0));
}

TEST(tf32_only_for_layers_where_it_is_faster) {
  const auto pays = [](std::int64_t width, std::int64_t kernel, Layout layout) {
    return cuda::tf32_pays(
        conv_args(2, 8, 8, 8, {30, width}, {3, kernel}, {1, kernel / 2}, {}, {}, layout));
  };
  const Layout first = Layout::kChannelsFirst, last = Layout::kChannelsLast;
  CHECK(pays(9, 3, first) && !pays(8, 3, first) && !pays(8, 23, last));
  CHECK(pays(9, 21, last) && !pays(9, 19, last));
}

TEST(what_a_layer_saves_tells_whether_it_was_rounded) {
  LayerArgs layer;
  layer.conv = conv_args(2, 8, 8, 8, {6, 16}, {3, 5}, {1, 2});
  layer.construct.rows = 8;
  layer.for_input = true;
  CHECK_EQ(cuda::LayerPlan(layer, false).saved() % 256, 0u);
  CHECK_EQ(cuda::LayerPlan(layer, true).saved() % 256, 8u);
  layer.conv.dtype = DType::kBFloat16;
  CHECK_EQ(cuda::LayerPlan(layer, true).saved() % 256, 0u);
}

namespace {

/// Wavefronts of a load of a warp from these places, in bytes, of `bytes` each: those of 16 bytes
/// are read 8 at a time, and different words of a bank one after another.
int wavefronts(const std::vector<int>& places, int bytes) {
  int most = 0;
  const int banks = cuda::kBankBytes / bytes;
  for (int bank = 0; bank < banks; ++bank) {
    std::set<int> different;
    for (const int place : places) {
      if (place / bytes % banks == bank) different.insert(place);
    }
    most = std::max(most, static_cast<int>(different.size()));
  }
  return most;
}

/// Of the rows that are loaded together, from row `row` of a plan's tile on: 8 of 16 bytes, or 4 of
/// 8 values in the gradient of the kernel in TF32.
int row_wavefronts(const cuda::ToeplitzTiles& plan, int row, bool of_source) {
  const bool words = plan.unit * plan.bytes > cuda::kLoadBytes;
  std::vector<int> places;
  for (int i = row; i < row + (words ? 4 : 8); ++i) {
    const int m = cuda::existing_row(i, plan.planes * plan.rows);
    const int place = of_source ? m / plan.rows * plan.plane_pitch + m % plan.rows * plan.pitch
                                : i * plan.target_pitch;
    for (int c = 0; c < (words ? 8 : 1); ++c) places.push_back((place + c) * plan.bytes);
  }
  return wavefronts(places, words ? 4 : cuda::kLoadBytes);
}

}  // namespace

TEST(plans_fit_and_have_no_bank_conflicts) {
  for (const std::int64_t kernel : {3, 7, 17, 23, 31, 63}) {
    for (const std::int64_t size : {1, 7, 10, 14, 28, 56, 100, 224, 4096}) {
      for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
        for (const std::int64_t batch : {1, 5, 128}) {
          for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
            ConvArgs args = conv_args(batch, 96, 96, 96, {size, size}, {kernel, kernel},
                                      {kernel / 2, kernel / 2}, {}, {}, layout);
            args.dtype = dtype;
            args.allow_tf32 = true;
            const auto check_plan = [](const auto& plan, int rows) {
              REQUIRE(plan.threads() > 0);
              CHECK(plan.threads() <= cuda::kToeplitzThreads);
              CHECK(cuda::toeplitz_shared_bytes(plan) <= cuda::kToeplitzShared);
              CHECK(plan.planes * plan.rows <= rows);
              const int least = plan.planes * plan.rows < 8 ? 2 : 1;
              for (int row = 0; row < rows; row += 8) {
                CHECK(row_wavefronts(plan, row, true) <= least);
              }
            };
            for (const ConvPass pass : {ConvPass::kForward, ConvPass::kBackwardInput}) {
              const cuda::ToeplitzPlan plan = cuda::make_toeplitz_plan(args, pass);
              check_plan(plan, plan.slot_warps * cuda::kWarpRows);
            }
            const cuda::ToeplitzKernelPlan plan = cuda::make_toeplitz_kernel_plan(args);
            const int rows = plan.planes * plan.rows;
            check_plan(plan, rows + 7 - (rows + 7) % 8);
            CHECK_EQ(row_wavefronts(plan, 0, false), 1);
          }
        }
      }
    }
  }
}

CHECK_MAIN()
