#pragma once

// An element on one axis, and what the versions' taps are written with.

#include <float.h>
#include <math.h>

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "core/macros.hpp"
#include "dcls/types.hpp"
#include "interpolation/exponential.hpp"

namespace dcls::interp {

/// What a version is: a specialisation for each, in a header of its own. The contract is in
/// interpolation.hpp.
template <Version V>
struct Interpolation;

/// A tap and its derivatives by the element's position and width.
template <typename T>
struct Tap {
  T value;
  T d_position;
  T d_sigma;
};

/// An element on one axis.
template <typename T>
struct Element {
  T p;          ///< position from the centre; NaN if the given one was not finite
  T centre;     ///< grid index of position 0
  T sigma;      ///< width; unused by versions without one
  T inv_sigma;  ///< 1 / sigma
  T cut;        ///< gauss drops the taps whose exponent is below it
};

/// Half-open range of grid points outside which a tap and its derivatives are zero.
struct Support {
  std::int64_t lo;
  std::int64_t hi;
};

/// A gaussian tap less than exp(-kRelativeCut) of the element's largest one on the grid is dropped:
/// 1e-10 in float32 and 3e-20 in float64. Its derivatives by position and width are larger than it
/// by u / sigma and u^2 / sigma, u^2 being 2 kRelativeCut there, and still 12 times below the
/// rounding of the largest one.
template <typename T>
inline constexpr T kRelativeCut = sizeof(T) == 4 ? T(23) : T(45);

// The C functions rather than std:: ones, whose inline wrappers have external linkage (macros.hpp).
DCLS_HD float floor_of(float value) { return ::floorf(value); }
DCLS_HD double floor_of(double value) { return ::floor(value); }
DCLS_HD float root_of(float value) { return ::sqrtf(value); }
DCLS_HD double root_of(double value) { return ::sqrt(value); }

template <typename T>
DCLS_HD constexpr T smallest_normal() {
  return sizeof(T) == 4 ? T(FLT_MIN) : T(DBL_MIN);
}

/// condition ? yes : no with both sides evaluated, so that loops over it vectorise.
template <typename T>
DCLS_HD T select(bool condition, T yes, T no) {
  return condition ? yes : no;
}

template <typename T>
DCLS_HD T absolute(T value) {
  return select(value < T(0), -value, value);
}
template <typename T>
DCLS_HD T sign(T value) {
  return static_cast<T>(value > T(0)) - static_cast<T>(value < T(0));
}

template <typename T>
DCLS_HD Element<T> make_element(T position, T raw_sigma, T sigma_min, std::int64_t size) {
  Element<T> e;
  // position - position is 0, or NaN for an infinite position, which would otherwise vanish from
  // the kernel without a trace; a diverged training must show.
  e.p = position + (position - position);
  e.centre = static_cast<T>(size / 2);
  // A width that is no normal number acts as the smallest one that is: 1 / sigma stays finite, and
  // where denormals are flushed the width does not vanish.
  const T width = absolute(raw_sigma) + sigma_min;
  e.sigma = select(width < smallest_normal<T>(), smallest_normal<T>(), width);
  e.inv_sigma = T(1) / e.sigma;
  // Relative to the nearest grid point, not to 1: outside the grid every tap is small, and the
  // normalisation brings them back. A NaN exponent is below no cut.
  const T last = static_cast<T>(size - 1) - e.centre;
  const T rounded = floor_of(e.p + T(0.5));
  const T nearest = select(rounded < -e.centre, -e.centre, select(rounded > last, last, rounded));
  const T u = (nearest - e.p) * e.inv_sigma;
  const T cut = T(-0.5) * u * u - kRelativeCut<T>;
  e.cut = select(cut > kLowestExponent<T>, cut, kLowestExponent<T>);
  return e;
}

/// Makes an element that is NaN on one axis NaN on all, so that it reaches its whole grid.
template <typename T, int D>
DCLS_HD void spread_nan(Element<T> (&elements)[D]) {
  T poison = T(0);
  for (int d = 0; d < D; ++d) poison += elements[d].p - elements[d].p;
  for (int d = 0; d < D; ++d) elements[d].p += poison;
}

/// d sigma / d raw_sigma: the derivative of |raw_sigma|, 0 at 0. By the bits, since comparisons
/// take denormals for 0 where they are flushed.
template <typename T>
DCLS_HD T sigma_slope(T raw_sigma) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const Bits bits = numeric::bit_cast<Bits>(raw_sigma);
  const Bits negative = Bits(1) << (8 * sizeof(T) - 1);
  if ((bits & ~negative) == 0) return T(0);
  return (bits & negative) != 0 ? T(-1) : T(1);
}

template <typename T>
DCLS_HD Tap<T> relu_tap(T height, T delta, T d_sigma) {
  const bool inside = height > T(0);
  // The comparison with itself lets NaN through, as relu does in torch.
  return {select(inside, height, select(height == height, T(0), height)),
          select(inside, sign(delta), T(0)), select(inside, d_sigma, T(0))};
}

}  // namespace dcls::interp
