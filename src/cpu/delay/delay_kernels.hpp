#pragma once

// What the kernels of whole delays of one instruction set offer to the dispatcher.

#include <cstdint>

#include "cpu/delay/delay_plan.hpp"

namespace dcls::cpu {

struct DelayKernels {
  /// Columns, that is items of the batch, of a block.
  std::int64_t (*columns)(DType dtype, std::int64_t batch);
  /// Copies the values of the blocks [begin, end), each (inputs, columns) and dense, with zeros
  /// beyond the batch, to memory of the type computed in.
  void (*pack)(const DelayPlan& plan, const DelayTensors& tensors, std::int64_t columns,
               void* packed, std::int64_t begin, std::int64_t end);
  /// Computes the chunks [begin, end) of rows.
  void (*run)(const DelayPlan& plan, const DelayTensors& tensors, std::int64_t columns,
              const void* packed, std::int64_t begin, std::int64_t end);
};

namespace baseline {
extern const DelayKernels delay_kernels;
}
namespace avx2 {
extern const DelayKernels delay_kernels;
}
namespace avx512_256 {
extern const DelayKernels delay_kernels;
}
namespace avx512 {
extern const DelayKernels delay_kernels;
}

}  // namespace dcls::cpu
