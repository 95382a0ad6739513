#pragma once

#include "core/dispatch.hpp"
#include "cuda/im2col/im2col_kernels.cuh"
#include "cuda/im2col/im2col_launch.hpp"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

/// Fills the workspace with the taps, which every call begins with.
template <typename T, int D>
TapLayout launch_taps(const Im2colArgs& args, void* workspace, const Execution& where) {
  const TapLayout layout = tap_table::longest_layout(args);
  launch<&im2col_taps<T, D>>("im2col_taps", where, grid_for(blocks_of(layout.elements)),
                             kIm2colThreads, 0, args, layout, workspace);
  return layout;
}

template <int D>
void launch_im2col(const Im2colArgs& args, void* columns, void* workspace, const Execution& where) {
  const PlanePlan plan = make_plane_plan(args, args.output_size);
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const TapLayout layout = launch_taps<Compute<Storage>, D>(args, workspace, where);
    launch<&im2col_forward<Storage, D>>("im2col_forward", where, grid_for(plan.items),
                                        kIm2colThreads, 0, args, layout, plan, workspace, columns);
  });
}

template <int D>
void launch_im2col_backward(const Im2colArgs& args, const void* grad_columns,
                            const Im2colGrads& grads, void* workspace, const Execution& where) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    TapLayout layout = tap_table::longest_layout(args);
    if (layout.elements > 0) layout = launch_taps<T, D>(args, workspace, where);
    if (grads.input != nullptr) {
      const PlanePlan plan = make_plane_plan(args, args.input_size);
      launch<&im2col_backward_input<Storage, D>>("im2col_backward_input", where,
                                                 grid_for(plan.items), kIm2colThreads, 0, args,
                                                 layout, plan, workspace, grad_columns, grads);
    }
    if (grads.sums != nullptr && layout.elements > 0) {
      launch<&im2col_backward_sums<Storage, D>>(
          "im2col_backward_sums", where, grid_for(grads.parts * layout.elements), kIm2colThreads,
          kSumWarps * tap_table::sums_of(D) * sizeof(T), args, layout, workspace, grad_columns,
          grads);
    }
  });
}

template <int D>
void launch_im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                          void* grad_position, void* grad_sigma, void* workspace,
                          const Execution& where) {
  dispatch_compute(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const TapLayout layout = launch_taps<T, D>(args, workspace, where);
    launch<&im2col_finish<T, D>>("im2col_finish", where, grid_for(blocks_of(layout.elements)),
                                 kIm2colThreads, 0, args, layout, workspace, sums, parts,
                                 grad_position, grad_sigma);
  });
}

}  // namespace dcls::cuda
