#pragma once

// Rows of values between memory and compute type. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.hpp"
#include "cpu/simd/vectors.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

using ShortLanes __attribute__((vector_size(DCLS_SIMD_BYTES / 2))) = std::uint16_t;
using WordLanes __attribute__((vector_size(DCLS_SIMD_BYTES))) = std::uint32_t;

DCLS_HD WordLanes bits_of(Vector<float> v) {
  WordLanes bits;
  memcpy(&bits, &v, sizeof(bits));
  return bits;
}
DCLS_HD Vector<float> values_of(WordLanes bits) {
  Vector<float> v;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

/// A vector of values from memory, converted.
template <typename Storage>
DCLS_HD Vector<Compute<Storage>> load_lanes(const Storage* from) {
  using T = Compute<Storage>;
  if constexpr (std::is_same_v<Storage, T>) {
    return load_vector(from);
  } else if constexpr (std::is_same_v<Storage, BFloat16>) {
    ShortLanes bits;
    memcpy(&bits, from, sizeof(bits));
    return values_of(__builtin_convertvector(bits, WordLanes) << 16);
  } else {
#if DCLS_SIMD_BYTES == 64
    __m256i bits;
    memcpy(&bits, from, sizeof(bits));
    // Masked: gcc 12 warns of the plain one's undefined pass-through.
    const __m512 v = _mm512_maskz_cvtph_ps(0xffff, bits);
#elif defined(__F16C__)
    __m128i bits;
    memcpy(&bits, from, sizeof(bits));
    const __m256 v = _mm256_cvtph_ps(bits);
#elif defined(__aarch64__)
    float16x4_t bits;
    memcpy(&bits, from, sizeof(bits));
    const float32x4_t v = vcvt_f32_f16(bits);
#else
    T v[kLanes<T>];
    for (std::int64_t i = 0; i < kLanes<T>; ++i) v[i] = numeric::load(from[i]);
#endif
    Vector<T> result;
    memcpy(&result, &v, sizeof(result));
    return result;
  }
}

template <typename Storage>
DCLS_HD void store_lanes(Storage* to, Vector<Compute<Storage>> v) {
  using T = Compute<Storage>;
  if constexpr (std::is_same_v<Storage, T>) {
    store_vector(to, v);
  } else if constexpr (std::is_same_v<Storage, BFloat16>) {
    const WordLanes bits = bits_of(v);
    // numeric::float_to_bfloat16_bits for all lanes: to nearest even, and NaN stays one.
    const WordLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const WordLanes quiet = (bits >> 16) | 0x40u;
    const ShortLanes narrow =
        __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, ShortLanes);
    memcpy(to, &narrow, sizeof(narrow));
  } else {
#if DCLS_SIMD_BYTES == 64
    if constexpr (std::is_same_v<Storage, Half>) {
      __m512 wide;
      memcpy(&wide, &v, sizeof(v));
      const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, wide, _MM_FROUND_TO_NEAREST_INT);
      memcpy(to, &bits, sizeof(bits));
      return;
    }
#elif defined(__F16C__)
    if constexpr (std::is_same_v<Storage, Half>) {
      __m256 wide;
      memcpy(&wide, &v, sizeof(v));
      const __m128i bits = _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
      memcpy(to, &bits, sizeof(bits));
      return;
    }
#elif defined(__aarch64__)
    if constexpr (std::is_same_v<Storage, Half>) {
      float32x4_t wide;
      memcpy(&wide, &v, sizeof(v));
      const float16x4_t bits = vcvt_f16_f32(wide);
      memcpy(to, &bits, sizeof(bits));
      return;
    }
#endif
    T lanes[kLanes<T>];
    store_vector(lanes, v);
    for (std::int64_t i = 0; i < kLanes<T>; ++i) numeric::store(to + i, lanes[i]);
  }
}

/// Copies `count` values, less than a vector has, by pieces of fixed size.
template <typename Storage, std::int64_t kPiece = kLanes<Compute<Storage>> / 2>
DCLS_HD void copy_some(Storage* to, const Storage* from, std::int64_t count) {
  if ((count & kPiece) != 0) {
    memcpy(to, from, kPiece * sizeof(Storage));
    to += kPiece;
    from += kPiece;
  }
  if constexpr (kPiece > 1) copy_some<Storage, kPiece / 2>(to, from, count);
}

/// The first `count` lanes of a vector, or all; the others are zero, and their memory is not read.
template <typename Storage>
DCLS_HD Vector<Compute<Storage>> load_some(const Storage* from, std::int64_t count) {
  if (count >= kLanes<Compute<Storage>>) return load_lanes(from);
  Storage values[kLanes<Compute<Storage>>] = {};
  copy_some(values, from, count);
  return load_lanes(static_cast<const Storage*>(values));
}
template <typename Storage>
DCLS_HD void store_some(Storage* to, Vector<Compute<Storage>> v, std::int64_t count) {
  if (count >= kLanes<Compute<Storage>>) return store_lanes(to, v);
  Storage values[kLanes<Compute<Storage>>];
  store_lanes(values, v);
  copy_some(to, static_cast<const Storage*>(values), count);
}

/// The first `count` lanes of a vector, or all; the others are zero, whatever they were.
template <typename T>
DCLS_HD Vector<T> first_lanes(Vector<T> v, std::int64_t count) {
  if (count >= kLanes<T>) return v;
  T lanes[kLanes<T>];
  memcpy(lanes, &v, sizeof(v));
  for (std::int64_t i = count > 0 ? count : 0; i < kLanes<T>; ++i) lanes[i] = T(0);
  memcpy(&v, lanes, sizeof(v));
  return v;
}

/// Calls block(i) for vectors that cover [0, count), the last of which may overlap the one before,
/// or single(i) where there are fewer values than a vector has.
template <typename T, typename Block, typename Single>
DCLS_HD void for_vectors(std::int64_t count, const Block& block, const Single& single) {
  std::int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) block(i);
  if (i == count) return;
  if (count >= kLanes<T>) return block(count - kLanes<T>);
  for (; i < count; ++i) single(i);
}

template <typename Storage, typename T>
DCLS_HD void load_row(const Storage* from, T* to, std::int64_t count) {
  for_vectors<T>(
      count, [&](std::int64_t i) { store_vector(to + i, load_lanes(from + i)); },
      [&](std::int64_t i) { to[i] = numeric::load(from[i]); });
}
template <typename Storage, typename T>
DCLS_HD void store_row(const T* from, Storage* to, std::int64_t count) {
  for_vectors<T>(
      count, [&](std::int64_t i) { store_lanes(to + i, load_vector(from + i)); },
      [&](std::int64_t i) { numeric::store(to + i, from[i]); });
}

/// One step of a transposition: exchanges the upper half of each 2 * kStep lanes of `a` with the
/// lower half of those of `b`.
template <int kStep, typename V, int... kLane>
DCLS_HD void exchange(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int kCount = sizeof...(kLane);
  const V low =
      __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kCount + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStep) != 0 ? kCount + kLane : kLane + kStep)...);
  a = low;
}

template <int kStep, typename T>
DCLS_HD void transpose_steps(Vector<T> (&rows)[kLanes<T>]) {
  using Lanes = std::make_integer_sequence<int, static_cast<int>(kLanes<T>)>;
#pragma GCC unroll 16
  for (int i = 0; i < static_cast<int>(kLanes<T>); ++i) {
    if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep], Lanes{});
  }
  if constexpr (kStep > 1) transpose_steps<kStep / 2, T>(rows);
}

/// Transposes a square of values in registers.
template <typename T>
DCLS_HD void transpose(Vector<T> (&rows)[kLanes<T>]) {
  transpose_steps<static_cast<int>(kLanes<T>) / 2, T>(rows);
}

/// The sums over the lanes of kLanes vectors, added in the order of sum_lanes.
template <typename T>
DCLS_HD Vector<T> sum_rows(const T* from) {
  Vector<T> rows[kLanes<T>];
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kLanes<T>; ++i) rows[i] = load_vector(from + i * kLanes<T>);
  transpose<T>(rows);
#pragma GCC unroll 4
  for (std::int64_t width = kLanes<T> / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < width; ++i) rows[i] += rows[i + width];
  }
  return rows[0];
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
