#include "cuda/construct/construct_launch.cuh"

namespace dcls::cuda {
template void launch_construct<3>(const ConstructArgs&, void*, const Execution&);
template void launch_construct_backward<3>(const ConstructArgs&, const void*, const ConstructGrads&,
                                           const Execution&);
template void launch_construct_support<3>(const ConstructArgs&, std::uint8_t*, const Execution&);
}  // namespace dcls::cuda
