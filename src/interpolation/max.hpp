#pragma once

#include "interpolation/element.hpp"

namespace dcls::interp {

/// relu(sigma - |delta|), normalised over the grid (arXiv 2306.00817).
template <>
struct Interpolation<Version::kMax> {
  static constexpr const char* kName = "max";
  static constexpr bool kNormalised = true;
  static constexpr bool kHasWidth = true;
  static constexpr double kSmallestWidth = 1;
  static constexpr int kMostTaps = 0;

  template <typename T>
  DCLS_HD_STATIC Tap<T> tap(const Element<T>& e, T x) {
    const T delta = x - e.p;
    return relu_tap(e.sigma - absolute(delta), delta, T(1));
  }

  template <typename T>
  DCLS_HD_STATIC T reach(const Element<T>& e) {
    return e.sigma;
  }
};

}  // namespace dcls::interp
