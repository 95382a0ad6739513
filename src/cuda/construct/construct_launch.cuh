#pragma once

#include "core/dispatch.hpp"
#include "cuda/construct/construct_backward.cuh"
#include "cuda/construct/construct_forward.cuh"
#include "cuda/construct/construct_launch.hpp"
#include "cuda/construct/construct_support.cuh"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

template <int D>
void launch_construct(const ConstructArgs& args, void* kernel, const Execution& where) {
  const ForwardPlan plan = make_forward_plan(args);
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&construct_forward<Storage, D>>(
        "construct_forward", where, grid_for(plan.items), kForwardThreads,
        plan.shared_values() * sizeof(Compute<Storage>), args, plan, kernel);
  });
}

template <int D>
void launch_construct_backward(const ConstructArgs& args, const void* grad_kernel,
                               const ConstructGrads& grads, const Execution& where) {
  const BackwardPlan plan = make_backward_plan(args);
  const std::int64_t blocks = (plan.items + kBackwardGroups - 1) / kBackwardGroups;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&construct_backward<Storage, D>>(
        "construct_backward", where, grid_for(blocks), kBackwardThreads,
        plan.shared_values() * sizeof(Compute<Storage>), args, plan, grad_kernel, grads);
  });
}

template <int D>
void launch_construct_support(const ConstructArgs& args, std::uint8_t* support,
                              const Execution& where) {
  std::int64_t cells = args.rows;
  for (int d = 0; d < D; ++d) cells *= args.size[d];
  const std::int64_t blocks = (cells + kSupportThreads - 1) / kSupportThreads;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&construct_support_cells<Storage, D>>("construct_support_cells", where, grid_for(blocks),
                                                 kSupportThreads, 0, args, cells, support);
  });
}

}  // namespace dcls::cuda
