#pragma once

#include "interpolation/element.hpp"

namespace dcls::interp {

/// relu(1 - |delta|), normalised over the grid (arXiv 2306.00817).
template <>
struct Interpolation<Version::kV1> {
  static constexpr const char* kName = "v1";
  static constexpr bool kNormalised = true;
  static constexpr bool kHasWidth = false;
  static constexpr double kSmallestWidth = 0;
  static constexpr int kMostTaps = 2;

  template <typename T>
  DCLS_HD_STATIC Tap<T> tap(const Element<T>& e, T x) {
    const T delta = x - e.p;
    return relu_tap(T(1) - absolute(delta), delta, T(0));
  }

  template <typename T>
  DCLS_HD_STATIC T reach(const Element<T>&) {
    return T(1);
  }
};

}  // namespace dcls::interp
