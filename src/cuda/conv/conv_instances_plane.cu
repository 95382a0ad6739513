#include "cuda/conv/conv_launch.cuh"

namespace dcls::cuda {
template void launch_conv_forward<false>(const ConvArgs&, ConvPass, const void*, const void*,
                                         const void*, void*, void*, const Execution&);
template void launch_conv_kernel<false>(const ConvArgs&, const void*, const void*,
                                        const std::uint8_t*, void*, void*, const Execution&);
template void launch_conv_sums<false>(const ConvPlan&, DType, const std::uint8_t*, void*,
                                      const void*, const void*, void*, void*, const Execution&);
template void launch_conv_listed<false>(const ConvPlan&, ConvPass, DType, const ConvLists&,
                                        const void*, const void*, void*, const Execution&);
template void launch_conv_partial<false>(const ConvPlan&, DType, const ConvLists&, const void*,
                                         const void*, void*, void*, const Execution&);
}  // namespace dcls::cuda
