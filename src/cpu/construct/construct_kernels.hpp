#pragma once

// What the construct kernels of one instruction set offer to the dispatcher.

#include <cstdint>

#include "dcls/construct.hpp"

namespace dcls::cpu {

struct ConstructKernels {
  /// Kernels and supports of the rows [begin, end), either of which may be null. `scratch` has
  /// scratch_bytes(args) bytes, aligned to 64, for this thread alone.
  void (*forward)(const ConstructArgs& args, void* kernel, std::uint8_t* support,
                  std::int64_t begin, std::int64_t end, void* scratch);
  /// Gradients of the elements of the rows [begin, end).
  void (*backward)(const ConstructArgs& args, const void* grad_kernel, const ConstructGrads& grads,
                   std::int64_t begin, std::int64_t end, void* scratch);
  std::int64_t (*scratch_bytes)(const ConstructArgs& args);
};

namespace baseline {
extern const ConstructKernels construct_kernels;
}
namespace avx2 {
extern const ConstructKernels construct_kernels;
}
namespace avx512_256 {
extern const ConstructKernels construct_kernels;
}
namespace avx512 {
extern const ConstructKernels construct_kernels;
}

}  // namespace dcls::cpu
