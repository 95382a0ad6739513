// The convolution on tensor cores, its kernels launched on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "conv_problem.hpp"
#include "cuda/conv/toeplitz_launch.cuh"
#include "cuda_host.hpp"
#include "how_to_run.hpp"

namespace dcls::test {

inline LaunchOptions with_shared(LaunchOptions options) {
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
    host_cuda::launch(with_shared(how.launch),
                      cuda::toeplitz_forward<Storage, tiles.value, blocks.value>,
                      grid(how, cuda::toeplitz_blocks(plan)), static_cast<unsigned>(plan.threads()),
                      cuda::toeplitz_shared_bytes(plan), plan, source, kernel, bias, target);
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
                      grid(how, cuda::copy_blocks(copy)), cuda::kCopyThreads, 0, copy);
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
        grid(how, cuda::toeplitz_blocks(plan)), static_cast<unsigned>(plan.threads()),
        cuda::toeplitz_shared_bytes(plan), plan, source, target, partial.data(), bias.data());
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
inline std::vector<ConvArgs> covered_args() {
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

}  // namespace dcls::test
