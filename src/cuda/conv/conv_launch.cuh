#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/conv/conv_forward.cuh"
#include "cuda/conv/conv_launch.hpp"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

template <typename Cell, typename Packed>
void launch_conv_list(const ConvPlan& plan, const Cell* cells, const ConvLists& lists,
                      const Execution& where) {
  const std::int64_t count = plan.list_rows * plan.stages;
  if (count == 0) return;
  launch<&conv_list_units<Cell, Packed>>(
      "conv_list_units", where, grid_for(divide_up(count, kListThreads / kWarp)), kListThreads, 0,
      plan, cells, lists.counts, lists.units, static_cast<Packed*>(lists.packed));
}

template <bool kLine>
void launch_conv_listed(const ConvPlan& plan, ConvPass pass, DType dtype, const ConvLists& lists,
                        const void* source, const void* bias, void* target,
                        const Execution& where) {
  dispatch_dtype(dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&conv_forward<Storage, kLine>>(
        "conv_forward", where, grid_for(plan.channel_blocks * plan.phases * plan.tiles),
        static_cast<unsigned>(plan.threads()), conv_shared_bytes(plan, pass, dtype), plan,
        static_cast<const Storage*>(source), lists.counts, lists.units,
        static_cast<const Compute<Storage>*>(lists.packed), static_cast<const Storage*>(bias),
        static_cast<Storage*>(target));
  });
}

template <bool kLine>
void launch_conv_forward(const ConvArgs& args, ConvPass pass, const void* source,
                         const void* kernel, const void* bias, void* target, void* workspace,
                         const Execution& where) {
  const ConvPlan plan = make_conv_plan(args, pass);
  const ConvLists lists(workspace, conv_workspace(plan, pass, args.dtype));
  for_parts(plan, args.dtype, [&](const ConvPlan& part) {
    dispatch_dtype(args.dtype, [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      launch_conv_list<Storage, Compute<Storage>>(part, static_cast<const Storage*>(kernel), lists,
                                                  where);
    });
    launch_conv_listed<kLine>(part, pass, args.dtype, lists, source, bias, target, where);
  });
}

template <bool kLine>
void launch_conv_partial(const ConvPlan& plan, DType dtype, const ConvLists& lists,
                         const void* grad_output, const void* input, void* partial, void* bias,
                         const Execution& where) {
  dispatch_dtype(dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    launch<&conv_kernel_partial<Storage, kLine>>(
        "conv_kernel_partial", where,
        grid_for(plan.channel_blocks * plan.source_per_group * plan.stages * plan.splits),
        static_cast<unsigned>(plan.threads()),
        conv_shared_bytes(plan, ConvPass::kBackwardKernel, dtype), plan,
        static_cast<const Storage*>(input), static_cast<const Storage*>(grad_output), lists.counts,
        lists.units, static_cast<const std::uint32_t*>(lists.packed), static_cast<T*>(partial),
        static_cast<T*>(bias));
  });
}

template <bool kLine>
void launch_conv_sums(const ConvPlan& plan, DType dtype, const std::uint8_t* support, void* lists,
                      const void* grad_output, const void* input, void* partial, void* bias,
                      const Execution& where) {
  const ConvLists at(lists, conv_workspace(plan, ConvPass::kBackwardKernel, dtype));
  for_parts(plan, dtype, [&](const ConvPlan& part) {
    launch_conv_list<std::uint8_t, std::uint32_t>(part, support, at, where);
    launch_conv_partial<kLine>(part, dtype, at, grad_output, input, partial, bias, where);
  });
}

template <bool kLine>
void launch_conv_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                        const std::uint8_t* support, void* grad_kernel, void* workspace,
                        const Execution& where) {
  constexpr ConvPass kPass = ConvPass::kBackwardKernel;
  const ConvPlan plan = make_conv_plan(args, kPass);
  void* const partial =
      static_cast<std::byte*>(workspace) + conv_workspace(plan, kPass, args.dtype).lists();
  if (plan.splits > 0) {
    launch_conv_sums<kLine>(plan, args.dtype, support, workspace, grad_output, input, partial,
                            nullptr, where);
  }
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&conv_kernel_finish<Storage>>(
        "conv_kernel_finish", where,
        grid_for(divide_up(plan.kernel_rows * plan.cells, kFinishThreads)), kFinishThreads, 0, args,
        plan, static_cast<const Compute<Storage>*>(partial), support,
        static_cast<const Storage*>(grad_output), static_cast<const Storage*>(input),
        static_cast<Storage*>(grad_kernel));
  });
}

}  // namespace dcls::cuda
