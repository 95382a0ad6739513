#pragma once

// What the im2col kernels of one instruction set offer to the dispatcher.

#include <cstdint>

#include "dcls/im2col.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cpu {

struct Im2colKernels {
  /// Sizes of the table that the problem's taps need.
  void (*layout)(const Im2colArgs& args, TapLayout* layout);
  std::int64_t (*table_bytes)(const Im2colArgs& args, const TapLayout& layout);
  /// Fills the table for elements [begin, end), counted through all channels.
  void (*fill)(const Im2colArgs& args, const TapLayout& layout, void* table, std::int64_t begin,
               std::int64_t end);
  /// Columns of the planes [begin, end): (item of the batch, channel, range of elements). The
  /// elements of a channel are cut into `cuts` ranges.
  void (*forward)(const Im2colArgs& args, const TapLayout& layout, void* table, std::int64_t cuts,
                  void* columns, std::int64_t begin, std::int64_t end, void* scratch);
  /// Gradients of [begin, end): (channel, part).
  void (*backward)(const Im2colArgs& args, const TapLayout& layout, void* table,
                   const void* grad_columns, const Im2colGrads& grads, std::int64_t begin,
                   std::int64_t end, void* scratch);
  void (*finish)(const Im2colArgs& args, const TapLayout& layout, void* table, const void* sums,
                 std::int64_t parts, void* grad_position, void* grad_sigma, std::int64_t begin,
                 std::int64_t end);
  /// Of one thread, aligned to 64.
  std::int64_t (*forward_scratch)(const Im2colArgs& args, const TapLayout& layout);
  std::int64_t (*backward_scratch)(const Im2colArgs& args, const TapLayout& layout);
};

namespace baseline {
extern const Im2colKernels im2col_kernels;
}
namespace avx2 {
extern const Im2colKernels im2col_kernels;
}
namespace avx512_256 {
extern const Im2colKernels im2col_kernels;
}
namespace avx512 {
extern const Im2colKernels im2col_kernels;
}

}  // namespace dcls::cpu
