// What the self-tests of the harness share.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_host/schedules.hpp"

namespace dcls::host_cuda::self_test {

#if defined(DCLS_HOST_CUDA_TSAN)
inline constexpr bool kTsan = true;
#else
inline constexpr bool kTsan = false;
#endif
#if defined(DCLS_HOST_CUDA_ASAN)
inline constexpr bool kAsan = true;
#else
inline constexpr bool kAsan = false;
#endif

/// Small integers in no simple order: sums of them are exact.
template <class T>
std::vector<T> ramp(std::size_t size) {
  std::vector<T> values(size);
  for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<T>((i * 37 + 11) % 101);
  return values;
}

}  // namespace dcls::host_cuda::self_test
