#pragma once

// exp(x) for x <= 0, as the gaussian taps need it: a few multiply-adds that vectorise wherever they
// are inlined, three times as fast as the C library's vector function, and on every compiler.

#include <math.h>

#include <cstdint>

#include "core/dtype.hpp"
#include "core/macros.hpp"

namespace dcls {

/// Below it exp(x) is not a normal number any more.
template <typename T>
inline constexpr T kLowestExponent = sizeof(T) == 4 ? T(-87) : T(-708);

namespace detail {

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kBias = 127;
  static constexpr int kDegree = 7;              // remainder (ln2 / 2)^8 / 8! = 5e-9
  static constexpr float kRound = 0x1.8p23f;     // adding it rounds to an integer
  static constexpr float kLn2High = 0x1.63p-1f;  // few bits: its product with an integer is exact
  static constexpr float kLn2Low = -0x1.bd0106p-13f;
};
template <>
struct ExpConstants<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kBias = 1023;
  static constexpr int kDegree = 13;  // remainder (ln2 / 2)^14 / 14! = 4e-18
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefa0000p-1;
  static constexpr double kLn2Low = 0x1.cf79abc9e3b3ap-40;
};

constexpr double inverse_factorial(int k) { return k == 0 ? 1.0 : inverse_factorial(k - 1) / k; }

/// sum_{k=kFirst}^{kDegree} r^(k - kFirst) / k!, by Horner's rule.
template <int kFirst, int kDegree, typename T>
DCLS_HD T exp_series(T r) {
  constexpr T kCoefficient = static_cast<T>(inverse_factorial(kFirst));
  if constexpr (kFirst == kDegree) {
    return kCoefficient;
  } else {
    return kCoefficient + r * exp_series<kFirst + 1, kDegree>(r);
  }
}

}  // namespace detail

/// exp(x) for x in [kLowestExponent, 0] to 2 ulp; NaN for NaN. Anything (but no fault) below.
template <typename T>
DCLS_HD T exponential(T x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  using C = detail::ExpConstants<T>;
  using Bits = typename C::Bits;
  const T shifted = x * T(1.4426950408889634074) + C::kRound;
  const T n = shifted - C::kRound;  // round(x / ln 2)
  const T r = (x - n * C::kLn2High) - n * C::kLn2Low;
  // The low bits of `shifted` are n: moved to the exponent field they make 2^n.
  const Bits power =
      (numeric::bit_cast<Bits>(shifted) << C::kMantissa) + (C::kBias << C::kMantissa);
  return detail::exp_series<0, C::kDegree>(r) * numeric::bit_cast<T>(power);
#endif
}

}  // namespace dcls
