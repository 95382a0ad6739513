#pragma once

// Parameters that the API has in double precision, in kernels that compute in float32.

#include <cstdint>

#include "core/dtype.hpp"

namespace dcls::numeric {

/// A number that is not negative, rounded to the nearest float32, ties to even: by its bits. A GPU
/// has few units for double precision, whose conversions are instructions of it.
DCLS_HD float float_of_double_bits(double value) {
  constexpr std::uint32_t kInfinity = 0x7f800000u;
  constexpr int kBias = 1023 - 127;
  const auto bits = bit_cast<std::uint64_t>(value);
  const int exponent = static_cast<int>(bits >> 52);
  const std::uint64_t fraction = bits & 0xfffffffffffffu;
  if (exponent > kBias + 254) {  // NaN stays NaN
    return bit_cast<float>(exponent == 2047 && fraction != 0 ? kInfinity | 1u : kInfinity);
  }
  // Below the normal numbers the exponent stays, and more bits are cut off.
  const int below = exponent > kBias ? 0 : kBias + 1 - exponent;
  if (below > 25) return 0.0f;
  const int cut = 29 + below;
  const std::uint64_t all = fraction | (exponent > 0 ? std::uint64_t{1} << 52 : 0);
  const std::uint64_t half = (std::uint64_t{1} << (cut - 1)) - 1 + (all >> cut & 1u);
  const std::uint32_t base =
      below > 0 ? 0u : static_cast<std::uint32_t>(exponent - kBias - 1) << 23;
  return bit_cast<float>(base + static_cast<std::uint32_t>((all + half) >> cut));
}

/// A parameter that is not negative, in the type that is computed in.
template <typename T>
DCLS_HD T parameter(double value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) return float_of_double_bits(value);
#endif
  return static_cast<T>(value);
}

}  // namespace dcls::numeric
