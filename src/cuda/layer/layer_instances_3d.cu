#include "cuda/layer/layer_launch.cuh"

namespace dcls::cuda {
template void launch_layer_prepare<3>(const LayerPrepare&, const Execution&);
template void launch_layer_finish<3>(const LayerFinish&, const Execution&);
}  // namespace dcls::cuda
