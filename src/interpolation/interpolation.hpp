#pragma once

// The mathematics of an element on one axis. The only copy: the CPU and the CUDA back ends both
// include it.
//
// A version is a line of the list in dcls/types.hpp and a header of its own, with an
// Interpolation<Version> that has
//   kName           as users write it
//   kNormalised     whether an element is divided by the sum of its taps over the grid
//   kHasWidth       whether its taps read e.sigma
//   kSmallestWidth  of an element where the caller does not say; 0 without a width
//   kMostTaps       how many taps of an axis may differ from zero, an even number n: those from
//                   floor(p) - n / 2 + 1 to floor(p) + n / 2. 0 if the width says how many.
//   tap(e, x)       the tap at grid point x and its derivatives, everywhere on the axis. x counts
//                   from the centre, as e.p does. Its value is NaN if e.p is.
//   reach(e)        how far from e.p a tap may differ from zero
// What is missing does not compile.

#include <stdlib.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/macros.hpp"
#include "dcls/types.hpp"
#include "interpolation/element.hpp"
#include "interpolation/gauss.hpp"
#include "interpolation/max.hpp"
#include "interpolation/normalise.hpp"
#include "interpolation/spline.hpp"
#include "interpolation/v0.hpp"
#include "interpolation/v1.hpp"

namespace dcls::interp {

namespace detail {

template <Version V, typename T>
constexpr bool has_functions() {
  using I = Interpolation<V>;
  using E = const Element<T>&;
  static_assert(std::is_same_v<decltype(I::tap(std::declval<E>(), T())), Tap<T>>);
  static_assert(std::is_same_v<decltype(I::reach(std::declval<E>())), T>);
  return true;
}

template <Version V>
constexpr bool keeps_contract() {
  using I = Interpolation<V>;
  static_assert(I::kName[0] != 0);
  static_assert(std::is_same_v<decltype(I::kNormalised), const bool>);
  static_assert(I::kHasWidth == (I::kSmallestWidth > 0), "a width has a smallest one");
  static_assert(I::kHasWidth == (I::kMostTaps == 0), "without a width, taps are bounded");
  static_assert(I::kMostTaps >= 0 && I::kMostTaps % 2 == 0, "as many on both sides");
  return has_functions<V, float>() && has_functions<V, double>();
}

#define DCLS_CHECK_VERSION(enumerator) static_assert(keeps_contract<Version::enumerator>());
DCLS_FOR_EACH_VERSION(DCLS_CHECK_VERSION)
#undef DCLS_CHECK_VERSION

}  // namespace detail

template <Version V>
using VersionTag = std::integral_constant<Version, V>;

/// Calls `function` with the version as an integral_constant. A value that is no version is a
/// programming error: arguments are validated before (src/api).
template <typename Function>
DCLS_HD void visit(Version version, Function&& function) {
#define DCLS_VISIT_VERSION(enumerator) \
  case Version::enumerator: return function(VersionTag<Version::enumerator>{});
  switch (version) { DCLS_FOR_EACH_VERSION(DCLS_VISIT_VERSION) }
#undef DCLS_VISIT_VERSION
#if defined(__CUDA_ARCH__)
  __trap();
#else
  abort();
#endif
}

/// Whether the taps of an axis are those of floor(p) and the point after it, the others zero.
template <Version V>
inline constexpr bool kHasTwoTaps = Interpolation<V>::kMostTaps == 2;

DCLS_HD bool is_normalised(Version version) {
  bool normalised = false;
  visit(version, [&](auto v) { normalised = Interpolation<v.value>::kNormalised; });
  return normalised;
}
DCLS_HD bool has_width(Version version) {
  bool has = false;
  visit(version, [&](auto v) { has = Interpolation<v.value>::kHasWidth; });
  return has;
}
DCLS_HD int most_taps(Version version) {
  int taps = 0;
  visit(version, [&](auto v) { taps = Interpolation<v.value>::kMostTaps; });
  return taps;
}
DCLS_HD bool has_two_taps(Version version) { return most_taps(version) == 2; }

/// The tap of an element at grid index `x`.
template <Version V, typename T>
DCLS_HD Tap<T> evaluate(const Element<T>& e, T x) {
  // From the centre, where small integers are exact: adding the centre to the position instead, as
  // the formula is written, would round the position.
  return Interpolation<V>::tap(e, x - e.centre);
}

/// Clamps a real bound to [0, size]; NaN becomes `otherwise`.
template <typename T>
DCLS_HD std::int64_t clamp_bound(T bound, std::int64_t size, std::int64_t otherwise) {
  if (!(bound == bound)) return otherwise;
  if (bound <= T(0)) return 0;
  if (bound >= static_cast<T>(size)) return size;
  return static_cast<std::int64_t>(bound);
}

/// A superset of the grid points where a tap is not exactly zero: the whole axis for NaN.
template <Version V, typename T>
DCLS_HD Support support(const Element<T>& e, std::int64_t size) {
  const T reach = Interpolation<V>::reach(e);
  // The bounds leave a grid point for rounding.
  return {clamp_bound(floor_of(e.p - reach) + e.centre, size, 0),
          clamp_bound(floor_of(e.p + reach) + e.centre + T(2), size, size)};
}

/// Most grid points of a support, on an axis of `size` points.
DCLS_HD std::int64_t largest_support(Version version, std::int64_t size) {
  const std::int64_t taps = most_taps(version);
  return taps == 0 || taps + 2 > size ? size : taps + 2;
}

}  // namespace dcls::interp
