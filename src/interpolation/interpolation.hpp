#pragma once

// The mathematics of an element on one axis: tap, derivatives, support, normalisation. The only
// copy: the CPU and the CUDA back ends both include it.

#include <math.h>

#include <cstdint>
#include <type_traits>

#include "core/macros.hpp"
#include "dcls/types.hpp"
#include "interpolation/exponential.hpp"

namespace dcls::interp {

template <Version V>
using VersionTag = std::integral_constant<Version, V>;

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
  T sigma;      ///< width; unused by v0 and v1
  T inv_sigma;  ///< 1 / sigma
  T cut;        ///< gauss drops the taps whose exponent is below it
};

/// Half-open range of grid points outside which a tap and its derivatives are zero.
struct Support {
  std::int64_t lo;
  std::int64_t hi;
};

DCLS_HD constexpr bool has_sigma(Version version) {
  return version == Version::kMax || version == Version::kGauss;
}
DCLS_HD constexpr bool is_normalised(Version version) { return version != Version::kV0; }
/// Whether the taps of an axis are those of floor(p) and the point after it, the others zero.
DCLS_HD constexpr bool has_two_taps(Version version) { return !has_sigma(version); }

/// A gaussian tap less than exp(-kRelativeCut) of the element's largest one on the grid is dropped:
/// 1e-10 in float32 and 3e-20 in float64. Its derivatives by position and width are larger than it
/// by u / sigma and u^2 / sigma, u^2 being 2 kRelativeCut there, and still 12 times below the
/// rounding of the largest one.
template <typename T>
inline constexpr T kRelativeCut = sizeof(T) == 4 ? T(23) : T(45);

/// Added to the grid sum of an element before dividing by it.
template <typename T>
DCLS_HD constexpr T norm_epsilon() {
  return static_cast<T>(1e-7);
}

// The C functions rather than std:: ones, whose inline wrappers have external linkage (macros.hpp).
DCLS_HD float floor_of(float value) { return ::floorf(value); }
DCLS_HD double floor_of(double value) { return ::floor(value); }
DCLS_HD float root_of(float value) { return ::sqrtf(value); }
DCLS_HD double root_of(double value) { return ::sqrt(value); }

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
  e.sigma = absolute(raw_sigma) + sigma_min;
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

/// d sigma / d raw_sigma: the derivative of |raw_sigma|, 0 at 0.
template <typename T>
DCLS_HD T sigma_slope(T raw_sigma) {
  return sign(raw_sigma);
}

template <typename T>
DCLS_HD Tap<T> relu_tap(T height, T delta, T d_sigma) {
  const bool inside = height > T(0);
  // The comparison with itself lets NaN through, as relu does in torch.
  return {select(inside, height, select(height == height, T(0), height)),
          select(inside, sign(delta), T(0)), select(inside, d_sigma, T(0))};
}

/// The tap of an element at grid index `x`.
template <Version V, typename T>
DCLS_HD Tap<T> evaluate(const Element<T>& e, T x) {
  // From the centre, where small integers are exact: adding the centre to the position instead, as
  // the formula is written, would round the position.
  const T from_centre = x - e.centre;
  const T delta = from_centre - e.p;
  if constexpr (V == Version::kV0) {
    const T low = floor_of(e.p);
    const T fraction = e.p - low;
    const T outside = fraction * T(0);  // 0, or NaN for a NaN position
    const bool at_low = from_centre == low;
    const bool at_high = from_centre == low + T(1);
    return {select(at_low, T(1) - fraction, select(at_high, fraction, outside)),
            select(at_low, T(-1), select(at_high, T(1), outside)), T(0)};
  } else if constexpr (V == Version::kV1) {
    return relu_tap(T(1) - absolute(delta), delta, T(0));
  } else if constexpr (V == Version::kMax) {
    return relu_tap(e.sigma - absolute(delta), delta, T(1));
  } else {
    const T u = delta * e.inv_sigma;
    const T exponent = T(-0.5) * u * u;
    const bool negligible = exponent < e.cut;
    const T value = exponential(exponent);
    const T slope = value * u * e.inv_sigma;
    // Selected rather than multiplied: u may be so large that the slope is infinite.
    return {select(negligible, T(0), value), select(negligible, T(0), slope),
            select(negligible, T(0), slope * u)};
  }
}

/// Calls `function` with the version as an integral_constant.
template <typename Function>
DCLS_HD void dispatch_version(Version version, Function&& function) {
  switch (version) {
    case Version::kV0: return function(VersionTag<Version::kV0>{});
    case Version::kV1: return function(VersionTag<Version::kV1>{});
    case Version::kMax: return function(VersionTag<Version::kMax>{});
    case Version::kGauss: return function(VersionTag<Version::kGauss>{});
  }
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
  T reach = T(1);
  if constexpr (V == Version::kMax) reach = e.sigma;
  // Where -u^2 / 2 passes the cut; the bounds below leave a grid point for rounding.
  if constexpr (V == Version::kGauss) reach = e.sigma * root_of(T(-2) * e.cut);
  return {clamp_bound(floor_of(e.p - reach) + e.centre, size, 0),
          clamp_bound(floor_of(e.p + reach) + e.centre + T(2), size, size)};
}

/// Contractions of a kernel's gradient with an element's taps: `value` with the taps themselves,
/// `d_position[d]` and `d_sigma[d]` with the tap of axis d replaced by its derivative.
template <typename T, int D>
struct Contraction {
  T value;
  T d_position[D];
  T d_sigma[D];
};

/// 1 / (grid sum of an element + 1e-7), or 1 when not normalised.
template <typename T, int D>
DCLS_HD T inverse_norm(const Tap<T> (&sums)[D], bool normalised) {
  if (!normalised) return T(1);
  T grid_sum = sums[0].value;
  for (int d = 1; d < D; ++d) grid_sum *= sums[d].value;
  return T(1) / (grid_sum + norm_epsilon<T>());
}

/// Turns contractions into gradients of weight, position and width of one element, in place.
/// `sums[d]` holds the grid sums of the taps of axis d and of their derivatives.
///
/// With Z = prod_e z_e + 1e-7 and C = contraction.value, phi's contraction is C / Z and
/// d(C / Z)/dp_d = (C_d - C / Z * dz_d * prod_{e != d} z_e) / Z.
template <typename T, int D>
DCLS_HD void finish_gradient(Contraction<T, D>& c, const Tap<T> (&sums)[D], T weight,
                             bool normalised) {
  const T inv_norm = inverse_norm(sums, normalised);
  c.value *= inv_norm;
  for (int d = 0; d < D; ++d) {
    T others = T(0);
    if (normalised) {
      others = c.value;
      for (int e = 0; e < D; ++e) {
        if (e != d) others *= sums[e].value;
      }
    }
    c.d_position[d] = (c.d_position[d] - others * sums[d].d_position) * inv_norm * weight;
    c.d_sigma[d] = (c.d_sigma[d] - others * sums[d].d_sigma) * inv_norm * weight;
  }
}

}  // namespace dcls::interp
