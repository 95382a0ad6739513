#pragma once

#include "interpolation/element.hpp"

namespace dcls::interp {

/// exp(-delta^2 / (2 sigma^2)), normalised over the grid (arXiv 2306.00817).
template <>
struct Interpolation<Version::kGauss> {
  static constexpr const char* kName = "gauss";
  static constexpr bool kNormalised = true;
  static constexpr bool kHasWidth = true;
  static constexpr double kSmallestWidth = 0.27;
  static constexpr int kMostTaps = 0;

  template <typename T>
  DCLS_HD_STATIC Tap<T> tap(const Element<T>& e, T x) {
    const T delta = x - e.p;
    const T u = delta * e.inv_sigma;
    const T exponent = T(-0.5) * u * u;
    const bool negligible = exponent < e.cut;
    const T value = exponential(exponent);
    const T slope = value * u * e.inv_sigma;
    // Selected rather than multiplied: u may be so large that the slope is infinite.
    return {select(negligible, T(0), value), select(negligible, T(0), slope),
            select(negligible, T(0), slope * u)};
  }

  template <typename T>
  DCLS_HD_STATIC T reach(const Element<T>& e) {
    return e.sigma * root_of(T(-2) * e.cut);  // where -u^2 / 2 passes the cut
  }
};

}  // namespace dcls::interp
