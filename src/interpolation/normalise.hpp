#pragma once

// Normalisation of an element's taps, and the gradients of its weight, position and width.

#include "core/macros.hpp"
#include "interpolation/element.hpp"

namespace dcls::interp {

/// Added to the grid sum of an element before dividing by it.
template <typename T>
DCLS_HD constexpr T norm_epsilon() {
  return static_cast<T>(1e-7);
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
