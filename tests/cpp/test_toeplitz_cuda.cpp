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
#include "cuda/layer/layer_plan.hpp"
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

/// The sums of the gradient of the output are those in float32: nothing is rounded for them.
template <typename Storage>
void check_bias(const ConvArgs& args, int splits, const GuardedBuffer<float>& bias,
                const Storage* grad_output) {
  const std::int64_t points = ConvProblem::points(args.output_size, args.ndim);
  const std::int64_t channels = args.out_channels;
  const bool last = args.layout == Layout::kChannelsLast && channels > 1;
  for (std::int64_t c = 0; c < channels; ++c) {
    double expected = 0, size = 0, got = 0;
    for (std::int64_t i = 0; i < args.batch * points; ++i) {
      const std::int64_t first = i / points * channels * points;
      const std::int64_t at = first + (last ? i % points * channels + c : c * points + i % points);
      const double value = numeric::load(grad_output[at]);
      expected += value, size += std::fabs(value);
    }
    for (std::int64_t split = 0; split < splits; ++split) {
      got += bias.data()[split * channels + c];
    }
    if (std::isfinite(expected)) CHECK(std::fabs(got - expected) <= 1e-6 * size);
  }
}

template <typename Storage>
void kernel_gradient(const HowToRun& how, const ConvArgs& args, const Storage* grad_output,
                     const Storage* input, const std::uint8_t* support, Storage* grad_kernel) {
  cuda::ToeplitzKernelPlan plan = cuda::make_toeplitz_kernel_plan(args);
  cuda::ConvPlan finish = cuda::make_toeplitz_finish_plan(args);
  if (how.splits > 0) finish.splits = plan.splits = std::min(plan.splits, how.splits);
  const std::int64_t cells = finish.kernel_rows * finish.cells;
  GuardedBuffer<Storage> copies(cuda::channels_first_bytes(args) / sizeof(Storage), "copies");
  const Storage *source = input, *target = grad_output;
  if (cuda::needs_channels_first(args)) {
    const cuda::ChannelsFirst copy =
        cuda::make_channels_first(args, input, grad_output, copies.data());
    host_cuda::launch(how.launch, cuda::to_channels_first<Storage>,
                      how.blocks > 0 ? how.blocks : static_cast<unsigned>(cuda::copy_blocks(copy)),
                      cuda::kCopyThreads, 0, copy);
    copies.check();
    source = static_cast<const Storage*>(copy.input.to);
    target = static_cast<const Storage*>(copy.grad_output.to);
  }
  cuda::align_toeplitz_plan(plan, source, target);
  GuardedBuffer<float> partial(static_cast<std::size_t>(plan.splits * cells), "partial");
  GuardedBuffer<float> bias(static_cast<std::size_t>(plan.splits * plan.channels), "bias");
  cuda::dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
    host_cuda::launch(
        with_shared(how.launch), cuda::toeplitz_kernel_partial<Storage, tiles.value, blocks.value>,
        how.blocks > 0 ? how.blocks : static_cast<unsigned>(cuda::toeplitz_blocks(plan)),
        static_cast<unsigned>(plan.threads()), cuda::toeplitz_shared_bytes(plan), plan, source,
        target, partial.data(), bias.data());
  });
  partial.check(), bias.check();
  check_bias(args, plan.splits, bias, grad_output);
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
  args.allow_tf32 = true;
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

void check_same_bits(const ConvResults& got, const ConvResults& expected) {
  CHECK_SAME_BITS(got.output, expected.output);
  CHECK_SAME_BITS(got.grad_input, expected.grad_input);
  CHECK_SAME_BITS(got.grad_kernel, expected.grad_kernel);
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
int row_wavefronts(const cuda::ToeplitzPlan& plan, int row, bool of_source) {
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
              REQUIRE(plan.slots > 0 && plan.threads() > 0);
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
