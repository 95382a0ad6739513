#pragma once

#include "cuda/layer/layer_plan.hpp"

namespace dcls::cuda {

/// Launchers for one number of learnable axes; each is instantiated in a .cu file of its own.
template <int D>
void launch_layer_prepare(const LayerPrepare& job, const Execution& where);
template <int D>
void launch_layer_finish(const LayerFinish& job, const Execution& where);

}  // namespace dcls::cuda
