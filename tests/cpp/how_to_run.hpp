// How the CUDA kernels of a convolution are launched on the host.
#pragma once

#include <cstdint>

#include "cuda_host.hpp"

namespace dcls::test {

using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

struct HowToRun {
  LaunchOptions launch = {};
  unsigned blocks = 0;     ///< of a grid; 0 means one for each item, as the library launches
  bool all_cells = false;  ///< whether the gradient of the kernel has no support
  int splits = 0;  ///< parts of the sums of that gradient, at most; 0: as many as the plan has
};

inline unsigned grid(const HowToRun& how, std::int64_t items) {
  return how.blocks > 0 ? how.blocks : static_cast<unsigned>(items);
}

}  // namespace dcls::test
