// The construct operator on the CPU, compiled once per instruction set: which function does what.
// The versions with two taps on an axis have a path of their own, in construct_pairs.hpp.

#include "cpu/construct/construct_kernels.hpp"

#include <cstdint>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cpu/construct/construct_backward.hpp"
#include "cpu/construct/construct_forward.hpp"
#include "cpu/construct/construct_pairs.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

void forward(const ConstructArgs& args, void* kernel, std::uint8_t* support, std::int64_t begin,
             std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_ndim(args.ndim, [&](auto ndim) {
      Storage* const to = static_cast<Storage*>(kernel);
      if (interp::has_two_taps(args.version)) {
        return pairs::forward_rows<Storage, ndim()>(args, to, support, begin, end, scratch);
      }
      forward_rows<Storage, ndim()>(args, to, support, begin, end, scratch);
    });
  });
}

void backward(const ConstructArgs& args, const void* grad_kernel, const ConstructGrads& grads,
              std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_ndim(args.ndim, [&](auto ndim) {
      const Storage* const grad = static_cast<const Storage*>(grad_kernel);
      if (interp::has_two_taps(args.version)) {
        return pairs::backward_rows<Storage, ndim()>(args, grad, grads, begin, end);
      }
      const auto run = [&](auto order) {
        backward_rows<order(), Storage, ndim()>(args, grad, grads, begin, end, scratch);
      };
      if (grads.sigma != nullptr) return run(std::integral_constant<int, kSigma>{});
      if (grads.position != nullptr) return run(std::integral_constant<int, kPosition>{});
      return run(std::integral_constant<int, kValue>{});
    });
  });
}

std::int64_t scratch_bytes(const ConstructArgs& args) {
  std::int64_t bytes = 0;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using T = Compute<typename decltype(tag)::type>;
    std::int64_t row = padded<T>(args.size[args.ndim - 1]);
    for (int d = 0; d < args.ndim - 1; ++d) row *= args.size[d];
    bytes = static_cast<std::int64_t>(sizeof(T)) * (tap_values<T>(args) + row);
  });
  return bytes;
}

}  // namespace

const ConstructKernels construct_kernels = {&forward, &backward, &scratch_bytes};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
