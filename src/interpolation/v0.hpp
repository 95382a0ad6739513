#pragma once

#include "interpolation/element.hpp"

namespace dcls::interp {

/// Linear interpolation between the two grid points around the position (arXiv 2112.03740).
template <>
struct Interpolation<Version::kV0> {
  static constexpr const char* kName = "v0";
  static constexpr bool kNormalised = false;
  static constexpr bool kHasWidth = false;
  static constexpr double kSmallestWidth = 0;
  static constexpr int kMostTaps = 2;

  template <typename T>
  DCLS_HD_STATIC Tap<T> tap(const Element<T>& e, T x) {
    const T low = floor_of(e.p);
    const T fraction = e.p - low;
    const T outside = fraction * T(0);  // 0, or NaN for a NaN position
    const bool at_low = x == low;
    const bool at_high = x == low + T(1);
    return {select(at_low, T(1) - fraction, select(at_high, fraction, outside)),
            select(at_low, T(-1), select(at_high, T(1), outside)), T(0)};
  }

  template <typename T>
  DCLS_HD_STATIC T reach(const Element<T>&) {
    return T(1);
  }
};

}  // namespace dcls::interp
