#include "cuda/construct/construct_launch.cuh"

namespace dcls::cuda {
template void launch_construct<2>(const ConstructArgs&, void*, const Execution&);
template void launch_construct_backward<2>(const ConstructArgs&, const void*, const ConstructGrads&,
                                           const Execution&);
template void launch_construct_support<2>(const ConstructArgs&, std::uint8_t*, const Execution&);
}  // namespace dcls::cuda
