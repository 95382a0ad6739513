// The 16-bit types, parameters and the exponential.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>

#include "check.hpp"
#include "core/dtype.hpp"
#include "core/parameter.hpp"
#include "interpolation/exponential.hpp"

using namespace dcls;

namespace {

/// Rounds to nearest even at a format's precision, by arithmetic alone.
double rounded(double value, int mantissa_bits, int lowest_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), lowest_exponent);
  const double step = std::ldexp(1.0, exponent - mantissa_bits);
  return std::nearbyint(value / step) * step;
}

template <typename Storage>
void check_format(int mantissa_bits, int lowest_exponent, double largest) {
  // All 2^16 values come back as they were.
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const Storage stored{static_cast<std::uint16_t>(bits)};
    const float value = numeric::load(stored);
    Storage back{};
    numeric::store(&back, value);
    if (std::isnan(value)) {
      CHECK(std::isnan(numeric::load(back)));
    } else {
      CHECK_EQ(back.bits, stored.bits);
    }
  }
  // Everything between them is rounded to the nearest, ties to even.
  for (std::uint64_t i = 0; i < (std::uint64_t{1} << 32); i += 9973) {
    const std::uint32_t bits = static_cast<std::uint32_t>(i);
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    Storage stored{};
    numeric::store(&stored, value);
    if (std::isnan(value)) {  // whatever the bits that the format has no room for
      if (!std::isnan(numeric::load(stored))) CHECK_EQ(numeric::load(stored), value);
      continue;
    }
    double expected = rounded(value, mantissa_bits, lowest_exponent);
    if (std::abs(expected) > largest) expected = std::copysign(HUGE_VAL, expected);
    const double got = numeric::load(stored);
    if (got != expected) CHECK_EQ(got, expected);  // only failures: half a million would be slow
  }
  CHECK(true);
}

template <typename T>
void check_exponential(double ulp) {
  const double lowest = static_cast<double>(kLowestExponent<T>);
  double worst = 0;
  for (int i = 0; i <= 400000; ++i) {
    const T x = static_cast<T>(lowest * i / 400000);
    const long double exact = std::exp(static_cast<long double>(x));
    const long double unit =
        std::ldexp(1.0L, std::ilogb(exact) - (std::numeric_limits<T>::digits - 1));
    const double error =
        static_cast<double>(std::abs((static_cast<long double>(exponential(x)) - exact) / unit));
    worst = std::max(worst, error);
  }
  CHECK(worst < ulp);
  CHECK_EQ(exponential(T(0)), T(1));
  CHECK(std::isnan(exponential(std::numeric_limits<T>::quiet_NaN())));
}

}  // namespace

TEST(parameters_are_rounded_as_by_the_cpu) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 300000; ++i) {
    // Around the range of float32 mostly, and often half way between two of its numbers.
    const std::uint64_t exponent = i % 4 == 0 ? random() % 2047 : 870 + random() % 290;
    const std::uint64_t cut = i % 3 == 0 ? ~std::uint64_t{0xfffffff} : ~std::uint64_t{0};
    const std::uint64_t bits = exponent << 52 | (random() >> 12 & cut);
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    const float got = numeric::float_of_double_bits(value);
    if (got != static_cast<float>(value)) CHECK_EQ(got, static_cast<float>(value));
  }
  for (const double value : {0.0, 0x1p-149, 0x1p-150, 0x1.8p-150, 0x1p-126, 0.27, 0x1.fffffep127,
                             0x1.fffffefp127, 0x1.ffffffp127, HUGE_VAL}) {
    CHECK_EQ(numeric::float_of_double_bits(value), static_cast<float>(value));
  }
  CHECK(std::isnan(numeric::float_of_double_bits(std::nan(""))));
}

TEST(float16) { check_format<Half>(10, -14, 65504); }
TEST(bfloat16) { check_format<BFloat16>(7, -126, 3.3895313892515355e38); }
TEST(exponential_of_float) { check_exponential<float>(2); }
TEST(exponential_of_double) { check_exponential<double>(2); }

CHECK_MAIN()
