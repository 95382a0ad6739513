#pragma once

#include "core/dispatch.hpp"
#include "cuda/layer/layer_finish.cuh"
#include "cuda/layer/layer_launch.hpp"
#include "cuda/layer/layer_prepare.cuh"
#include "cuda/runtime/launch.cuh"

namespace dcls::cuda {

template <int D>
void launch_layer_prepare(const LayerPrepare& job, const Execution& where) {
  dispatch_dtype(job.construct.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&layer_prepare<Storage, D>>("layer_prepare", where, grid_for(job.blocks()),
                                       kForwardThreads, job.shared, job);
  });
}

template <int D>
void launch_layer_finish(const LayerFinish& job, const Execution& where) {
  dispatch_dtype(job.construct.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch<&layer_finish<Storage, D>>("layer_finish", where, grid_for(job.blocks()),
                                      kBackwardThreads, job.shared, job, job.row_blocks(),
                                      job.blocks());
  });
}

}  // namespace dcls::cuda
