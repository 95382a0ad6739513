#pragma once

// The taps of one element on all axes, for versions with any number of taps. Only for files
// compiled per instruction set.

#include <cstdint>
#include <cstdlib>

#include "core/dtype.hpp"
#include "cpu/simd/vectors.hpp"
#include "dcls/construct.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

using interp::Contraction;
using interp::Element;
using interp::Support;
using interp::Tap;

template <typename T>
inline constexpr std::int64_t kBlock = kLanes<T>;

template <typename T>
DCLS_HD std::int64_t padded(std::int64_t size) {
  return (size + kBlock<T> - 1) / kBlock<T> * kBlock<T>;
}

/// Taps of one element on one axis, zero from the start of the first vector of the support to the
/// end of its last one.
template <typename T>
struct AxisTaps {
  T* value;
  T* d_position;
  T* d_sigma;
  std::int64_t lo;  ///< support
  std::int64_t hi;
  std::int64_t vector_lo;  ///< support, grown to whole vectors
  std::int64_t vector_hi;
};

/// Which derivatives a contraction includes.
enum Order : int { kValue = 0, kPosition = 1, kSigma = 2 };

template <typename T, int D>
struct Workspace {
  AxisTaps<T> axis[D];
  T* row;                // size[0] x ... x padded(size[D-1])
  std::int64_t stride0;  // of axis 0 of the row for D = 3, in values
  std::int64_t pitch;    // padded(size[D-1])
  std::int64_t lines;    // product of the sizes but the last
};

template <typename T>
DCLS_HD std::int64_t tap_values(const ConstructArgs& args) {
  std::int64_t values = 0;
  for (int d = 0; d < args.ndim; ++d) values += 3 * padded<T>(args.size[d]);
  return values;
}

template <typename T, int D>
DCLS_HD Workspace<T, D> make_workspace(const ConstructArgs& args, void* scratch) {
  Workspace<T, D> w;
  T* next = static_cast<T*>(scratch);
  w.lines = 1;
  for (int d = 0; d < D; ++d) {
    const std::int64_t length = padded<T>(args.size[d]);
    w.axis[d] = {next, next + length, next + 2 * length, 0, 0, 0, 0};
    next += 3 * length;
    if (d < D - 1) w.lines *= args.size[d];
  }
  w.row = next;
  w.pitch = padded<T>(args.size[D - 1]);
  w.stride0 = D == 3 ? args.size[1] * w.pitch : w.pitch;
  return w;
}

/// Not inlined: it is the bulk of the code, and need not exist once per dimension.
template <int kOrder, Version V, typename T>
__attribute__((noinline)) void fill_axis(AxisTaps<T>& axis, Element<T> e, std::int64_t size) {
  const Support s = interp::support<V>(e, size);
  axis.lo = s.lo;
  axis.hi = s.hi;
  axis.vector_lo = s.lo / kBlock<T> * kBlock<T>;
  axis.vector_hi = s.hi > s.lo ? padded<T>(s.hi) : axis.vector_lo;
  T* const value = axis.value;
  T* const d_position = axis.d_position;
  T* const d_sigma = axis.d_sigma;
  const std::int32_t end = static_cast<std::int32_t>(axis.vector_hi);
#pragma omp simd
  for (std::int32_t x = static_cast<std::int32_t>(axis.vector_lo); x < end; ++x) {
    const Tap<T> tap = interp::evaluate<V>(e, static_cast<T>(x));
    value[x] = tap.value;
    if constexpr (kOrder >= kPosition) d_position[x] = tap.d_position;
    if constexpr (kOrder >= kSigma) d_sigma[x] = tap.d_sigma;
  }
  for (std::int64_t x = size; x < axis.vector_hi; ++x) {  // behind the grid
    value[x] = T(0);
    if constexpr (kOrder >= kPosition) d_position[x] = T(0);
    if constexpr (kOrder >= kSigma) d_sigma[x] = T(0);
  }
}

template <typename T>
DCLS_HD T sum_over(const T* taps, const AxisTaps<T>& axis) {
  Vector<T> sum = {};
  for (std::int64_t x = axis.vector_lo; x < axis.vector_hi; x += kBlock<T>) {
    sum += load_vector(taps + x);
  }
  return sum_lanes<T>(sum);
}

/// Evaluates the taps of element `index` on every axis, and their sums over the grid.
template <int kOrder, typename Storage, int D, typename T>
DCLS_HD void fill_taps(const ConstructArgs& args, std::int64_t index, Workspace<T, D>& w,
                       Tap<T> (&sums)[D]) {
  const Storage* const position = static_cast<const Storage*>(args.position);
  const Storage* const sigma = static_cast<const Storage*>(args.sigma);
  const std::int64_t plane = args.rows * args.elements;
  const bool normalised = interp::is_normalised(args.version);
  Element<T> elements[D];
  for (int d = 0; d < D; ++d) {
    const std::int64_t at = args.position_row[d] * plane + index;
    const T raw_sigma = sigma != nullptr ? numeric::load(sigma[at]) : T(0);
    elements[d] = interp::make_element<T>(numeric::load(position[at]), raw_sigma,
                                          static_cast<T>(args.sigma_min), args.size[d]);
  }
  interp::spread_nan(elements);
  for (int d = 0; d < D; ++d) {
    interp::visit(args.version, [&](auto v) {
      if constexpr (!interp::kHasTwoTaps<v.value>) {
        fill_axis<kOrder, v.value>(w.axis[d], elements[d], args.size[d]);
      } else {
        abort();  // in construct_pairs.hpp
      }
    });
    sums[d] = {};
    if (!normalised) continue;
    sums[d].value = sum_over(w.axis[d].value, w.axis[d]);
    if constexpr (kOrder >= kPosition) {
      sums[d].d_position = sum_over(w.axis[d].d_position, w.axis[d]);
    }
    if constexpr (kOrder >= kSigma) sums[d].d_sigma = sum_over(w.axis[d].d_sigma, w.axis[d]);
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
