// The direct convolution of bfloat16 tensors by products of pairs: see conv_pairs.hpp. Compiled for
// processors that multiply these.

#include <cstdint>

#include "cpu/conv/conv_backward_kernel.hpp"
#include "cpu/conv/conv_forward.hpp"
#include "cpu/conv/conv_kernels.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

bool forward(const ConvPlan& plan, const void* source, const void* bias, void* dest,
             std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  return forward_units(plan, static_cast<const BFloat16*>(source),
                       static_cast<const BFloat16*>(bias), static_cast<BFloat16*>(dest), begin, end,
                       scratch);
}

bool backward_kernel(const ConvPlan& plan, const void* source, const void* dest, void* grad_kernel,
                     void* partial, std::int64_t cells, std::int64_t begin, std::int64_t end,
                     void* scratch) {
  const FlushDenormals flush;
  return backward_kernel_units(plan, static_cast<const BFloat16*>(source),
                               static_cast<const BFloat16*>(dest),
                               static_cast<BFloat16*>(grad_kernel), static_cast<float*>(partial),
                               cells, begin, end, scratch);
}

}  // namespace

const ConvPasses conv_pair_passes = {&forward, &backward_kernel};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
