#include "cuda/conv/conv_launch.cuh"

namespace dcls::cuda {
template void launch_conv_forward<true>(const ConvArgs&, ConvPass, const void*, const void*,
                                        const void*, void*, void*, const Execution&);
template void launch_conv_kernel<true>(const ConvArgs&, const void*, const void*,
                                       const std::uint8_t*, void*, void*, const Execution&);
template void launch_conv_sums<true>(const ConvPlan&, DType, const std::uint8_t*, void*,
                                     const void*, const void*, void*, void*, const Execution&);
template void launch_conv_listed<true>(const ConvPlan&, ConvPass, DType, const ConvLists&,
                                       const void*, const void*, void*, const Execution&);
template void launch_conv_partial<true>(const ConvPlan&, DType, const ConvLists&, const void*,
                                        const void*, void*, void*, const Execution&);
}  // namespace dcls::cuda
