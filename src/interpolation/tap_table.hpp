#pragma once

// The taps of all elements of an im2col problem, evaluated once. Both back ends fill a table before
// anything else and read it everywhere: each tap serves thousands of outputs.

#include <cstdint>

#include "core/macros.hpp"
#include "core/parameter.hpp"
#include "dcls/im2col.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {

/// Where the taps of an element are not all zero on one axis, as grid points.
struct TapRange {
  std::int32_t base;  ///< that of the first one stored
  std::int32_t lo;
  std::int32_t hi;  ///< behind the last one
};

/// Sizes of a table.
struct TapLayout {
  std::int64_t elements;       ///< of all channels
  std::int64_t values;         ///< taps of an element: 3 * (sum of cap)
  std::int64_t cap[kMaxDims];  ///< most grid points stored for an axis
};

/// Views of a table's memory. Elements are counted through all channels.
template <typename T>
struct TapTable {
  TapLayout layout;
  T* taps;
  T* factors;  ///< scale, then value, d_position and d_sigma of the grid sum of each axis
  TapRange* ranges;
};

namespace tap_table {

DCLS_HD constexpr std::int64_t factors_of(int ndim) { return 1 + 3 * ndim; }
/// Sums that an element's gradients are made of: value, d_position and d_sigma of each axis.
DCLS_HD constexpr std::int64_t sums_of(int ndim) { return 1 + 2 * ndim; }

template <typename T>
DCLS_HD std::int64_t bytes(const TapLayout& layout, int ndim) {
  return layout.elements *
         ((layout.values + factors_of(ndim)) * static_cast<std::int64_t>(sizeof(T)) +
          ndim * static_cast<std::int64_t>(sizeof(TapRange)));
}

template <typename T, int D>
DCLS_HD TapTable<T> view(const TapLayout& layout, void* memory) {
  T* const taps = static_cast<T*>(memory);
  T* const factors = taps + layout.elements * layout.values;
  T* const end = factors + layout.elements * factors_of(D);
  return {layout, taps, factors, static_cast<TapRange*>(static_cast<void*>(end))};
}

/// value, d_position and d_sigma of axis `d`, cap[d] values apart, of the grid points from base on.
template <typename T>
DCLS_HD T* axis(const TapTable<T>& table, std::int64_t element, int d) {
  T* at = table.taps + element * table.layout.values;
  for (int e = 0; e < d; ++e) at += 3 * table.layout.cap[e];
  return at;
}
template <int D, typename T>
DCLS_HD TapRange& range(const TapTable<T>& table, std::int64_t element, int d) {
  return table.ranges[element * D + d];
}
/// 1 / (grid sum + 1e-7), or 1 where not normalised; NaN if the position or width on any axis is
/// not finite.
template <int D, typename T>
DCLS_HD T& scale(const TapTable<T>& table, std::int64_t element) {
  return table.factors[element * factors_of(D)];
}

template <typename T>
DCLS_HD interp::Element<T> element_of(const Im2colArgs& args, std::int64_t element, int d) {
  const std::int64_t at = d * args.channels * args.elements + element;
  const T* const sigma = static_cast<const T*>(args.sigma);
  return interp::make_element<T>(static_cast<const T*>(args.position)[at],
                                 sigma != nullptr ? sigma[at] : T(0),
                                 numeric::parameter<T>(args.sigma_min), args.size[d]);
}

/// Evaluates one axis of one element; returns the sums of its taps.
template <Version V, typename T>
DCLS_HD interp::Tap<T> fill_axis(const interp::Element<T>& e, std::int64_t size, std::int64_t cap,
                                 T* value, TapRange* range) {
  const interp::Support support = interp::support<V>(e, size);
  T* const d_position = value + cap;
  T* const d_sigma = d_position + cap;
  const std::int32_t base = static_cast<std::int32_t>(support.lo);
  std::int64_t points = support.hi - support.lo;
  // Only the whole axis of a NaN position is more: then the scale says all there is to say.
  if (points > cap) points = cap;
  const std::int32_t count = static_cast<std::int32_t>(points);
#if defined(_OPENMP) && !defined(__CUDACC__)
#pragma omp simd
#endif
  for (std::int32_t x = 0; x < count; ++x) {
    const interp::Tap<T> tap = interp::evaluate<V>(e, static_cast<T>(base + x));
    value[x] = tap.value;
    d_position[x] = tap.d_position;
    d_sigma[x] = tap.d_sigma;
  }
  interp::Tap<T> sums{};
  std::int32_t first = count;
  std::int32_t last = 0;
  for (std::int32_t x = 0; x < count; ++x) {
    sums.value += value[x];
    sums.d_position += d_position[x];
    sums.d_sigma += d_sigma[x];
    // The support is generous; a zero less is a row of the input less. NaN is not zero.
    if (value[x] != T(0) || d_position[x] != T(0) || d_sigma[x] != T(0)) {
      if (first == count) first = x;
      last = x + 1;
    }
  }
  *range = {base, base + first, base + (last > first ? last : first)};
  return sums;
}

template <typename T, int D>
DCLS_HD void fill(const Im2colArgs& args, const TapTable<T>& table, std::int64_t element) {
  interp::Tap<T> sums[D] = {};
  T* const factors = table.factors + element * factors_of(D);
  T poison = T(0);
  for (int d = 0; d < D; ++d) {
    const interp::Element<T> e = element_of<T>(args, element, d);
    interp::visit(args.version, [&](auto version) {
      sums[d] = fill_axis<version.value>(e, args.size[d], table.layout.cap[d],
                                         axis(table, element, d), &range<D>(table, element, d));
    });
    factors[1 + 3 * d] = sums[d].value;
    factors[2 + 3 * d] = sums[d].d_position;
    factors[3 + 3 * d] = sums[d].d_sigma;
    poison += (e.p - e.p) + (sums[d].value - sums[d].value);
  }
  factors[0] = interp::inverse_norm<T, D>(sums, interp::is_normalised(args.version)) + poison;
}

/// The layout with room for any support, for where the widths are not known.
DCLS_HD TapLayout longest_layout(const Im2colArgs& args) {
  TapLayout layout{};
  layout.elements = args.channels * args.elements;
  for (int d = 0; d < args.ndim; ++d) {
    layout.cap[d] = interp::largest_support(args.version, args.size[d]);
    layout.values += 3 * layout.cap[d];
  }
  return layout;
}

template <typename T, int D>
DCLS_HD void finish(const Im2colArgs& args, const TapTable<T>& table, const T* sums,
                    std::int64_t parts, T* grad_position, T* grad_sigma, std::int64_t element) {
  constexpr std::int64_t kSums = sums_of(D);
  const std::int64_t plane = table.layout.elements;
  T total[kSums] = {};
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t j = 0; j < kSums; ++j) total[j] += sums[(part * plane + element) * kSums + j];
  }
  const T norm = scale<D>(table, element);
  const T poison = norm == norm ? T(0) : norm;
  interp::Contraction<T, D> c;
  interp::Tap<T> grid[D];
  c.value = total[0] + poison;
  for (int d = 0; d < D; ++d) {
    const T* const factors = table.factors + element * factors_of(D) + 1 + 3 * d;
    grid[d] = {factors[0], factors[1], factors[2]};
    c.d_position[d] = total[1 + d] + poison;
    c.d_sigma[d] = total[1 + D + d] + poison;
  }
  interp::finish_gradient<T, D>(c, grid, T(1), interp::is_normalised(args.version));
  for (int d = 0; d < D; ++d) {
    const std::int64_t at = d * plane + element;
    if (grad_position != nullptr) grad_position[at] = c.d_position[d];
    if (grad_sigma != nullptr) {
      const T raw = static_cast<const T*>(args.sigma)[at];
      grad_sigma[at] = c.d_sigma[d] * interp::sigma_slope<T>(raw);
    }
  }
}

}  // namespace tap_table
}  // namespace dcls
