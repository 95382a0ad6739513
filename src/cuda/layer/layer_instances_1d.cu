#include "cuda/layer/layer_launch.cuh"

namespace dcls::cuda {
template void launch_layer_prepare<1>(const LayerPrepare&, const Execution&);
template void launch_layer_finish<1>(const LayerFinish&, const Execution&);
}  // namespace dcls::cuda
