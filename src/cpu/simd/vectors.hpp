#pragma once

// Vectors of the instruction set for which the including file is compiled. Only the files that
// CMake compiles once per instruction set include this; see src/CMakeLists.txt.

#include <cstdint>
#include <cstring>

#include "core/macros.hpp"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// DCLS_SIMD_256: AVX-512, its 32 registers and masks, in vectors of 256 bits.
#if defined(__AVX512BF16__) && defined(DCLS_SIMD_256)
#define DCLS_SIMD_NAMESPACE avx512bf16_256
#define DCLS_SIMD_BYTES 32
#elif defined(__AVX512BF16__)
#define DCLS_SIMD_NAMESPACE avx512bf16
#define DCLS_SIMD_BYTES 64
#elif defined(__AVX512F__) && defined(DCLS_SIMD_256)
#define DCLS_SIMD_NAMESPACE avx512_256
#define DCLS_SIMD_BYTES 32
#elif defined(__AVX512F__)
#define DCLS_SIMD_NAMESPACE avx512
#define DCLS_SIMD_BYTES 64
#elif defined(__AVX2__)
#define DCLS_SIMD_NAMESPACE avx2
#define DCLS_SIMD_BYTES 32
#else
#define DCLS_SIMD_NAMESPACE baseline
#define DCLS_SIMD_BYTES 16
#endif

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type __attribute__((vector_size(DCLS_SIMD_BYTES))) = float;
};
template <>
struct VectorOf<double> {
  using type __attribute__((vector_size(DCLS_SIMD_BYTES))) = double;
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline constexpr std::int64_t kLanes = DCLS_SIMD_BYTES / sizeof(T);

template <typename T>
DCLS_HD Vector<T> load_vector(const T* from) {
  Vector<T> v;
  memcpy(&v, from, sizeof(v));
  return v;
}
template <typename T>
DCLS_HD void store_vector(T* to, Vector<T> v) {
  memcpy(to, &v, sizeof(v));
}
/// The same vector, in a register. Else GCC loads a value from memory anew for each of its
/// products, and loads are what there are too few of.
template <typename V>
DCLS_HD V in_register(V v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__SSE__)
  __asm__("" : "+x"(v));
#elif defined(__aarch64__)
  __asm__("" : "+w"(v));
#endif
  return v;
}
template <typename T>
DCLS_HD T sum_lanes(Vector<T> v) {
  T lanes[kLanes<T>];
  memcpy(lanes, &v, sizeof(v));
  for (std::int64_t width = kLanes<T> / 2; width > 0; width /= 2) {
    for (std::int64_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

/// While it lives, this thread's arithmetic flushes denormals to zero: they cost a hundred cycles
/// each, a gaussian's tails are full of them, and they cannot change a result.
class FlushDenormals {
 public:
#if defined(__SSE__)
  __attribute__((always_inline)) FlushDenormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | 0x8040u);  // FTZ | DAZ
  }
  __attribute__((always_inline)) ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  __attribute__((always_inline)) FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | (std::uint64_t{1} << 24)));
  }
  __attribute__((always_inline)) ~FlushDenormals() {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved_));
  }

 private:
  std::uint64_t saved_;
#else
  __attribute__((always_inline)) FlushDenormals() {}
#endif

 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
