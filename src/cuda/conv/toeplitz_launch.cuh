#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cuda/conv/channels_first.cuh"
#include "cuda/conv/conv_backward_kernel.cuh"
#include "cuda/conv/toeplitz_backward_kernel.cuh"
#include "cuda/conv/toeplitz_forward.cuh"
#include "cuda/conv/toeplitz_launch.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

/// Calls function(column tiles, column blocks) with those of a plan as integral constants.
template <std::size_t kAt = 0, typename Function>
void dispatch_toeplitz(const ToeplitzTiles& plan, Function&& function) {
  constexpr ToeplitzColumns kernel = kToeplitzColumns[kAt];
  if (plan.column_tiles == kernel.tiles && plan.column_blocks == kernel.blocks) {
    function(std::integral_constant<int, kernel.tiles>{},
             std::integral_constant<int, kernel.blocks>{});
  } else if constexpr (kAt + 1 < std::size(kToeplitzColumns)) {
    dispatch_toeplitz<kAt + 1>(plan, function);
  } else {
    std::abort();
  }
}

template <typename Storage>
void launch_toeplitz_forward(const ConvArgs& args, ConvPass pass, const void* source,
                             const void* kernel, const void* bias, void* target,
                             const Execution& where) {
  ToeplitzPlan plan = make_toeplitz_plan(args, pass);
  align_toeplitz_plan(plan, source, target);
  dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
    launch<&toeplitz_forward<Storage, tiles.value, blocks.value>>(
        "toeplitz_forward", where, grid_for(toeplitz_blocks(plan)),
        static_cast<unsigned>(plan.threads()), toeplitz_shared_bytes(plan), plan,
        static_cast<const Storage*>(source), static_cast<const Storage*>(kernel),
        static_cast<const Storage*>(bias), static_cast<Storage*>(target));
  });
}

template <typename Storage>
void launch_toeplitz_partial(const ConvArgs& args, const void* grad_output, const void* input,
                             void* partial, void* bias, void* copies, const Execution& where) {
  if (needs_channels_first(args)) {
    const ChannelsFirst copy = make_channels_first(args, input, grad_output, copies);
    launch<&to_channels_first<Storage>>("to_channels_first", where, grid_for(copy_blocks(copy)),
                                        kCopyThreads, 0, copy);
    input = copy.input.to;
    grad_output = copy.grad_output.to;
  }
  ToeplitzKernelPlan plan = make_toeplitz_kernel_plan(args);
  align_toeplitz_plan(plan, input, grad_output);
  dispatch_toeplitz(plan, [&](auto tiles, auto blocks) {
    launch<&toeplitz_kernel_partial<Storage, tiles.value, blocks.value>>(
        "toeplitz_kernel_partial", where, grid_for(toeplitz_blocks(plan)),
        static_cast<unsigned>(plan.threads()), toeplitz_shared_bytes(plan), plan,
        static_cast<const Storage*>(input), static_cast<const Storage*>(grad_output),
        static_cast<float*>(partial), static_cast<float*>(bias));
  });
}

template <typename Storage>
void launch_toeplitz_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                            const std::uint8_t* support, void* grad_kernel, void* workspace,
                            const Execution& where) {
  const ConvPlan plan = make_toeplitz_finish_plan(args);
  void* const copies = static_cast<std::byte*>(workspace) + toeplitz_kernel_sums(plan);
  launch_toeplitz_partial<Storage>(args, grad_output, input, workspace, nullptr, copies, where);
  launch<&conv_kernel_finish<Storage>>(
      "conv_kernel_finish", where,
      grid_for(divide_up(plan.kernel_rows * plan.cells, kFinishThreads)), kFinishThreads, 0, args,
      plan, static_cast<const float*>(workspace), support, static_cast<const Storage*>(grad_output),
      static_cast<const Storage*>(input), static_cast<Storage*>(grad_kernel));
}

}  // namespace dcls::cuda
