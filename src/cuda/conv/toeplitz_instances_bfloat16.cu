#include "cuda/conv/toeplitz_launch.cuh"

namespace dcls::cuda {
template void launch_toeplitz_forward<BFloat16>(const ConvArgs&, ConvPass, const void*, const void*,
                                                const void*, void*, const Execution&);
template void launch_toeplitz_kernel<BFloat16>(const ConvArgs&, const void*, const void*,
                                               const std::uint8_t*, void*, void*, const Execution&);
template void launch_toeplitz_partial<BFloat16>(const ConvArgs&, const void*, const void*, void*,
                                                void*, void*, const Execution&);
}  // namespace dcls::cuda
