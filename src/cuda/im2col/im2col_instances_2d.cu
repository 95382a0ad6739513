#include "cuda/im2col/im2col_launch.cuh"

namespace dcls::cuda {
template void launch_im2col<2>(const Im2colArgs&, void*, void*, const Execution&);
template void launch_im2col_backward<2>(const Im2colArgs&, const void*, const Im2colGrads&, void*,
                                        const Execution&);
template void launch_im2col_finish<2>(const Im2colArgs&, const void*, std::int64_t, void*, void*,
                                      void*, const Execution&);
}  // namespace dcls::cuda
