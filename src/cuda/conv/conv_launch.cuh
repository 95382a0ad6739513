#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/conv/conv_forward.cuh"
#include "cuda/conv/conv_launch.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

/// The parts of a workspace.
struct ConvLists {
  std::int32_t* counts;
  Unit* units;
  void* packed;
  void* partial;

  ConvLists(void* workspace, const ConvWorkspace& bytes) {
    auto* at = static_cast<std::byte*>(workspace);
    counts = reinterpret_cast<std::int32_t*>(at);
    units = reinterpret_cast<Unit*>(at += bytes.counts);
    packed = at += bytes.units;
    partial = at += bytes.packed;
  }
};

template <typename Cell, typename Packed>
void launch_conv_list(const ConvPlan& plan, const Cell* cells, const ConvLists& lists,
                      const Execution& where) {
  const std::int64_t count = plan.kernel_rows * plan.stages;
  if (count == 0) return;
  launch("conv_list_units", where, &conv_list_units<Cell, Packed>,
         grid_for(divide_up(count, kListThreads / kWarp)), kListThreads, 0, plan, cells,
         lists.counts, lists.units, static_cast<Packed*>(lists.packed));
}

template <bool kLine>
void launch_conv_correlate(const ConvArgs& args, ConvPass pass, const void* source,
                           const void* kernel, const void* bias, void* target, void* workspace,
                           const Execution& where) {
  const ConvPlan plan = make_conv_plan(args, pass);
  const ConvLists lists(workspace, conv_workspace(plan, pass, args.dtype));
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    launch_conv_list<Storage, T>(plan, static_cast<const Storage*>(kernel), lists, where);
    launch("conv_correlate", where, &conv_correlate<Storage, kLine>,
           grid_for(plan.channel_blocks * plan.phases * plan.tiles),
           static_cast<unsigned>(plan.threads()), conv_shared_bytes(plan, pass, args.dtype), plan,
           static_cast<const Storage*>(source), lists.counts, lists.units,
           static_cast<const T*>(lists.packed), static_cast<const Storage*>(bias),
           static_cast<Storage*>(target));
  });
}

template <bool kLine>
void launch_conv_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                        const std::uint8_t* support, void* grad_kernel, void* workspace,
                        const Execution& where) {
  constexpr ConvPass kPass = ConvPass::kBackwardKernel;
  const ConvPlan plan = make_conv_plan(args, kPass);
  const ConvLists lists(workspace, conv_workspace(plan, kPass, args.dtype));
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    if (plan.splits > 0) {
      launch_conv_list<std::uint8_t, std::uint32_t>(plan, support, lists, where);
      launch("conv_kernel_partial", where, &conv_kernel_partial<Storage, kLine>,
             grid_for(plan.channel_blocks * plan.source_per_group * plan.stages * plan.splits),
             static_cast<unsigned>(plan.threads()), conv_shared_bytes(plan, kPass, args.dtype),
             plan, static_cast<const Storage*>(input), static_cast<const Storage*>(grad_output),
             lists.counts, lists.units, static_cast<const std::uint32_t*>(lists.packed),
             conv_tile_bytes(plan, args.dtype), static_cast<T*>(lists.partial));
    }
    launch("conv_kernel_finish", where, &conv_kernel_finish<Storage>,
           grid_for(divide_up(plan.kernel_rows * plan.cells, kFinishThreads)), kFinishThreads, 0,
           plan, static_cast<const T*>(lists.partial), support, static_cast<Storage*>(grad_kernel));
  });
}

}  // namespace dcls::cuda
