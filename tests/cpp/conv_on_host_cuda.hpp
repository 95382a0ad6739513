// The CUDA kernels of the direct convolution, launched on the host.
#pragma once

#include <cstdint>
#include <type_traits>

#include "check.hpp"
#include "conv_problem.hpp"
#include "core/dispatch.hpp"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/conv/conv_forward.cuh"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda_host.hpp"
#include "how_to_run.hpp"

namespace dcls::test {

/// Lists of exactly the size that a launch needs.
template <typename Packed>
struct Lists {
  GuardedBuffer<std::int32_t> counts;
  GuardedBuffer<cuda::Unit> units;
  GuardedBuffer<Packed> packed;

  static std::size_t lists(const cuda::ConvPlan& plan) {
    return static_cast<std::size_t>(plan.list_rows * plan.stages);
  }
  static std::size_t room(const cuda::ConvPlan& plan) {
    return lists(plan) * static_cast<std::size_t>(plan.stage_cells);
  }
  explicit Lists(const cuda::ConvPlan& plan)
      : counts(lists(plan), "counts"), units(room(plan), "units"), packed(room(plan), "packed") {}

  template <typename Cell>
  void fill(const HowToRun& how, const cuda::ConvPlan& plan, const Cell* cells) {
    if (counts.size() == 0) return;
    const std::int64_t warps = cuda::kListThreads / cuda::kWarp;
    host_cuda::launch(how.launch, cuda::conv_list_units<Cell, Packed>,
                      grid(how, cuda::divide_up(plan.list_rows * plan.stages, warps)),
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
  LaunchOptions options = how.launch;
  options.max_block_threads = cuda::kConvThreads;
  cuda::for_parts(plan, args.dtype, [&](const cuda::ConvPlan& part) {
    Lists<T> lists(part);
    lists.fill(how, part, kernel);
    host_cuda::launch(options, cuda::conv_forward<Storage, kLine>,
                      grid(how, part.channel_blocks * part.phases * part.tiles),
                      static_cast<unsigned>(part.threads()),
                      cuda::conv_shared_bytes(part, pass, args.dtype), part, source,
                      static_cast<const std::int32_t*>(lists.counts.data()),
                      static_cast<const cuda::Unit*>(lists.units.data()),
                      static_cast<const T*>(lists.packed.data()), bias, target);
  });
}

template <typename Storage, bool kLine>
void kernel_gradient(const HowToRun& how, const ConvArgs& args, const Storage* grad_output,
                     const Storage* input, const std::uint8_t* support, Storage* grad_kernel) {
  using T = Compute<Storage>;
  const ConvPass pass = ConvPass::kBackwardKernel;
  const cuda::ConvPlan plan = cuda::make_conv_plan(args, pass);
  const std::int64_t cells = plan.kernel_rows * plan.cells;
  GuardedBuffer<T> partial(static_cast<std::size_t>(plan.splits * cells), "partial");
  LaunchOptions options = how.launch;
  options.max_block_threads = cuda::kConvThreads;
  cuda::for_parts(plan, args.dtype, [&](const cuda::ConvPlan& part) {
    if (part.splits == 0) return;
    Lists<std::uint32_t> lists(part);
    lists.fill(how, part, support);
    host_cuda::launch(
        options, cuda::conv_kernel_partial<Storage, kLine>,
        grid(how, part.channel_blocks * part.source_per_group * part.stages * part.splits),
        static_cast<unsigned>(part.threads()), cuda::conv_shared_bytes(part, pass, args.dtype),
        part, input, grad_output, static_cast<const std::int32_t*>(lists.counts.data()),
        static_cast<const cuda::Unit*>(lists.units.data()),
        static_cast<const std::uint32_t*>(lists.packed.data()), partial.data(),
        static_cast<T*>(nullptr));
    partial.check();
  });
  host_cuda::launch(how.launch, cuda::conv_kernel_finish<Storage>,
                    grid(how, cuda::divide_up(cells, cuda::kFinishThreads)), cuda::kFinishThreads,
                    0, args, plan, static_cast<const T*>(partial.data()), support, grad_output,
                    input, grad_kernel);
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

}  // namespace dcls::test
