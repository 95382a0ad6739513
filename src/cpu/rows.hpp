#pragma once

// Rows of values between memory and compute type. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>

#include "common/numeric.hpp"
#include "cpu/simd.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

template <typename Storage, typename T>
DCLS_HD void load_row(const Storage* from, T* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) to[i] = numeric::load(from[i]);
}
template <typename Storage, typename T>
DCLS_HD void store_row(const T* from, Storage* to, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) numeric::store(to + i, from[i]);
}

#if defined(__F16C__)
// The compiler knows the conversions of float16 for single values only.
DCLS_HD void load_row(const Half* from, float* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    __m128i bits;
    memcpy(&bits, from + i, sizeof(bits));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(bits));
  }
  for (; i < count; ++i) to[i] = numeric::load(from[i]);
}
DCLS_HD void store_row(const float* from, Half* to, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i bits = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    memcpy(to + i, &bits, sizeof(bits));
  }
  for (; i < count; ++i) numeric::store(to + i, from[i]);
}
#endif

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
