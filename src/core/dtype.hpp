#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>

#include "core/macros.hpp"
#include "dcls/types.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#elif defined(__F16C__)
#include <immintrin.h>
#endif

namespace dcls {

/// IEEE binary16 and bfloat16 as storage only: loaded to float, computed, rounded back to nearest.
struct Half {
  std::uint16_t bits;
};
struct BFloat16 {
  std::uint16_t bits;
};

namespace numeric {

template <typename To, typename From>
DCLS_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

DCLS_HD float half_bits_to_float(std::uint16_t h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(h);
#elif defined(__aarch64__) && !defined(__CUDACC__)
  return bit_cast<__fp16>(h);
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude < 0x400u) {  // zero, subnormal: magnitude * 2^-24 is exact
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  return bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
#endif
}

DCLS_HD std::uint16_t float_to_half_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __half_as_ushort(__float2half_rn(value));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__) && !defined(__CUDACC__)
  return bit_cast<std::uint16_t>(static_cast<__fp16>(value));
#else
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {  // NaN, quiet
    return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  }
  if (magnitude >= 0x477ff000u) {  // rounds to 2^16 or more
    return static_cast<std::uint16_t>(sign | 0x7c00u);
  }
  if (magnitude < 0x38800000u) {  // subnormal: let the float adder round at 2^-24
    const float rounded = bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (bit_cast<std::uint32_t>(rounded) - 0x3f000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
#endif
}

DCLS_HD float bfloat16_bits_to_float(std::uint16_t b) {
  return bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

DCLS_HD std::uint16_t float_to_bfloat16_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN, quiet
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

DCLS_HD float load(float value) { return value; }
DCLS_HD double load(double value) { return value; }
DCLS_HD float load(Half value) { return half_bits_to_float(value.bits); }
DCLS_HD float load(BFloat16 value) { return bfloat16_bits_to_float(value.bits); }

/// 0 for a number below the smallest normal one. On the CPU, the threads' mode does it.
DCLS_HD float flush_subnormal(float value) {
  return value < FLT_MIN && value > -FLT_MIN ? 0.0f : value;
}
DCLS_HD double flush_subnormal(double value) {
  return value < DBL_MIN && value > -DBL_MIN ? 0.0 : value;
}

DCLS_HD void store(float* to, float value) { *to = value; }
DCLS_HD void store(double* to, double value) { *to = value; }
DCLS_HD void store(Half* to, float value) { to->bits = float_to_half_bits(value); }
DCLS_HD void store(BFloat16* to, float value) { to->bits = float_to_bfloat16_bits(value); }

}  // namespace numeric

/// The type in which a storage type is computed and accumulated: what numeric::load makes of it.
template <typename Storage>
using Compute = decltype(numeric::load(Storage()));

/// What a dtype is: a specialisation for each, with the type stored, for which there are
/// numeric::load and numeric::store, and the name that torch gives it.
template <DType kDType>
struct DTypeTraits;
template <>
struct DTypeTraits<DType::kFloat32> {
  using Storage = float;
  static constexpr const char* kName = "float32";
};
template <>
struct DTypeTraits<DType::kFloat64> {
  using Storage = double;
  static constexpr const char* kName = "float64";
};
template <>
struct DTypeTraits<DType::kFloat16> {
  using Storage = Half;
  static constexpr const char* kName = "float16";
};
template <>
struct DTypeTraits<DType::kBFloat16> {
  using Storage = BFloat16;
  static constexpr const char* kName = "bfloat16";
};

}  // namespace dcls
