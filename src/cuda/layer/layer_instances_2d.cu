#include "cuda/layer/layer_launch.cuh"

namespace dcls::cuda {
template void launch_layer_prepare<2>(const LayerPrepare&, const Execution&);
template void launch_layer_finish<2>(const LayerFinish&, const Execution&);
}  // namespace dcls::cuda
