#pragma once

#include "interpolation/element.hpp"

namespace dcls::interp {

/// The cubic B-spline, normalised over the grid. Of this package, not of the papers: twice
/// differentiable in the position, with a gradient that has no kink.
template <>
struct Interpolation<Version::kSpline> {
  static constexpr const char* kName = "spline";
  static constexpr bool kNormalised = true;
  static constexpr bool kHasWidth = false;
  static constexpr double kSmallestWidth = 0;
  static constexpr int kMostTaps = 4;

  template <typename T>
  DCLS_HD_STATIC Tap<T> tap(const Element<T>& e, T x) {
    const T delta = x - e.p;
    const T a = absolute(delta);
    const T b = T(2) - a;
    const bool inner = a < T(1);
    const bool outside = a >= T(2);  // not for NaN, which the outer piece hands on
    const T value =
        select(inner, T(2) / T(3) - a * a * (T(1) - T(0.5) * a), b * b * b * (T(1) / T(6)));
    const T slope = select(inner, a * (T(2) - T(1.5) * a), T(0.5) * b * b);  // -dvalue/da
    return {select(outside, T(0), value), select(outside, T(0), sign(delta) * slope), T(0)};
  }

  template <typename T>
  DCLS_HD_STATIC T reach(const Element<T>&) {
    return T(2);
  }
};

}  // namespace dcls::interp
