// The direct convolution on the CPU, compiled once per instruction set: which function does what.

#include "cpu/conv/conv_kernels.hpp"

#include <cstdint>

#include "core/dispatch.hpp"
#include "cpu/conv/conv_backward_bias.hpp"
#include "cpu/conv/conv_backward_kernel.hpp"
#include "cpu/conv/conv_forward.hpp"
#include "cpu/conv/conv_mark.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

bool forward(const ConvPlan& plan, const void* source, const void* bias, void* dest,
             std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  bool done = false;
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    done =
        forward_units(plan, static_cast<const Storage*>(source), static_cast<const Storage*>(bias),
                      static_cast<Storage*>(dest), begin, end, scratch);
  });
  return done;
}

bool backward_kernel(const ConvPlan& plan, const void* source, const void* dest, void* grad_kernel,
                     void* partial, std::int64_t cells, std::int64_t begin, std::int64_t end,
                     void* scratch) {
  const FlushDenormals flush;
  bool done = false;
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    done =
        backward_kernel_units(plan, static_cast<const Storage*>(source),
                              static_cast<const Storage*>(dest), static_cast<Storage*>(grad_kernel),
                              static_cast<Compute<Storage>*>(partial), cells, begin, end, scratch);
  });
  return done;
}

void reduce(const ConvPlan& plan, const void* partial, void* grad_kernel, std::int64_t cells,
            std::int64_t begin, std::int64_t end) {
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    reduce_cells(plan, static_cast<const Compute<Storage>*>(partial),
                 static_cast<Storage*>(grad_kernel), cells, begin, end);
  });
}

void backward_bias(const ConvArgs& args, const void* grad_output, void* grad_bias,
                   std::int64_t begin, std::int64_t end) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    bias_channels(args, static_cast<const Storage*>(grad_output), static_cast<Storage*>(grad_bias),
                  begin, end);
  });
}

}  // namespace

const ConvKernels conv_kernels = {{&forward, &backward_kernel},
                                  &reduce,
                                  &backward_bias,
                                  &mark_weights,
                                  &mark_support,
                                  kFastRows,
                                  DCLS_SIMD_BYTES};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
