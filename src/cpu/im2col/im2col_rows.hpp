#pragma once

// Rows of an im2col problem: weighted sums of shifted rows, which is all that interpolation is, and
// planes of the input laid out so that every shift is a pointer.

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/simd/rows.hpp"
#include "cpu/simd/vectors.hpp"
#include "dcls/im2col.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

DCLS_HD std::int64_t at_least_zero(std::int64_t value) { return value > 0 ? value : 0; }
DCLS_HD std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
DCLS_HD std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }
/// a / b rounded up, for b > 0 and any a.
DCLS_HD std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}
template <typename T>
DCLS_HD std::int64_t whole_vectors(std::int64_t length) {
  return (length + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

/// Terms of a weighted sum of rows: row t is at from + t * step and has the weight
/// taps[t * tap_step]; with kOut > 1 also the weights `cap` and 2 * cap values further on.
template <typename T>
struct Terms {
  const T* from;
  std::int64_t step;
  const T* taps;
  std::int64_t tap_step;
  std::int64_t cap;
  std::int64_t count;
};

/// The sums at `kVectors` vectors from `v` on.
template <int kOut, int kVectors, typename T>
DCLS_HD void sum_vectors(const Terms<T>& terms, std::int64_t v, Vector<T> (&sums)[kOut][kVectors]) {
  const T* from = terms.from + v;
  const T* tap = terms.taps;
  for (std::int64_t t = 0; t < terms.count; ++t, from += terms.step, tap += terms.tap_step) {
    for (int j = 0; j < kVectors; ++j) {
      const Vector<T> row = load_vector(from + j * kLanes<T>);
      for (int o = 0; o < kOut; ++o) sums[o][j] += tap[o * terms.cap] * row;
    }
  }
}

template <int kOut, int kVectors, bool kAdd, typename T>
DCLS_HD void write_vectors(T* const (&to)[kOut], const Terms<T>& terms, T scale, std::int64_t v) {
  Vector<T> sums[kOut][kVectors] = {};
  sum_vectors<kOut, kVectors>(terms, v, sums);
  for (int o = 0; o < kOut; ++o) {
    for (int j = 0; j < kVectors; ++j) {
      T* const at = to[o] + v + j * kLanes<T>;
      const Vector<T> value = scale * sums[o][j];
      store_vector(at, kAdd ? load_vector(at) + value : value);
    }
  }
}

/// to[o][v] = scale * (sum of the terms) for v in [0, length), added with kAdd. `length` is at
/// least a vector, and with kAdd a whole number of them.
template <int kOut, bool kAdd, typename T>
DCLS_HD void combine(T* const (&to)[kOut], const Terms<T>& terms, T scale, std::int64_t length) {
  constexpr int kWide = kOut == 1 ? 4 : 2;
  std::int64_t v = 0;
  for (; v + kWide * kLanes<T> <= length; v += kWide * kLanes<T>) {
    write_vectors<kOut, kWide, kAdd>(to, terms, scale, v);
  }
  for (; v + kLanes<T> <= length; v += kLanes<T>) {
    write_vectors<kOut, 1, kAdd>(to, terms, scale, v);
  }
  // The last vector overlaps the one before, so that no row needs room behind it.
  if (v < length) write_vectors<kOut, 1, kAdd>(to, terms, scale, length - kLanes<T>);
}

template <typename T>
DCLS_HD void clear(T* to, std::int64_t count) {
  for (std::int64_t x = 0; x < count; ++x) to[x] = T(0);
}

/// An axis of the problem.
struct Axis {
  std::int64_t size;
  std::int64_t stride;
  std::int64_t padding;
  std::int64_t input;
  std::int64_t output;
};
DCLS_HD Axis axis_of(const Im2colArgs& args, int d) {
  return {args.size[d], args.stride[d], args.padding[d], args.input_size[d], args.output_size[d]};
}

/// Points of the input that the outputs of an axis reach through grid points [lo, hi).
struct Lines {
  std::int64_t lo;
  std::int64_t hi;
};
DCLS_HD Lines reached(const Axis& a, std::int64_t lo, std::int64_t hi) {
  const std::int64_t first = larger(0, lo - a.padding);
  const std::int64_t end = smaller(a.input, (a.output - 1) * a.stride - a.padding + hi);
  return {smaller(first, a.input), larger(end, smaller(first, a.input))};
}

/// How the last axis of a plane is laid out: input point o * stride - padding + x is value
/// o + x / stride of phase x % stride, so that a grid point is a shift, for any stride. What lies
/// outside of the input is zero. A row's last vector may read values behind its phase, which it
/// does not use, and add zeros to them: where strides are large, room for whole vectors of outputs
/// would be many times the input.
struct Phases {
  std::int64_t count;
  std::int64_t pitch;  ///< values of a phase
  std::int64_t line;   ///< values of a line: all phases
};
template <typename T>
DCLS_HD Phases phases_of(const Axis& last) {
  const std::int64_t count = smaller(last.stride, last.size);
  std::int64_t pitch = (last.size - 1) / last.stride + last.output;
  if (count == 1) pitch = whole_vectors<T>(pitch + kLanes<T>);
  return {count, pitch, count * pitch};
}

/// Calls function(value, input point, number, distance): input points of a phase from one on, every
/// stride-th, are values next to each other.
template <typename Function>
DCLS_HD void for_phases(const Axis& last, const Phases& phases, Function&& function) {
  for (std::int64_t q = 0; q < phases.count; ++q) {
    const std::int64_t shift = q - last.padding;  // input point of value 0
    const std::int64_t lo = smaller(at_least_zero(ceil_div(-shift, last.stride)), phases.pitch);
    const std::int64_t hi = smaller(ceil_div(last.input - shift, last.stride), phases.pitch);
    if (lo < hi) function(q * phases.pitch + lo, lo * last.stride + shift, hi - lo);
  }
}

/// Copies lines of the input, `pitch` values apart, to a plane whose other values are zero already.
template <typename T, typename Storage>
DCLS_HD void load_plane(T* plane, const Storage* input, std::int64_t lines, const Axis& last,
                        const Phases& phases) {
  for_phases(last, phases, [&](std::int64_t value, std::int64_t point, std::int64_t count) {
    for (std::int64_t line = 0; line < lines; ++line) {
      T* const to = plane + line * phases.line + value;
      const Storage* const from = input + line * last.input + point;
      if (last.stride == 1) {
        load_row(from, to, count);
      } else {
        for (std::int64_t j = 0; j < count; ++j) to[j] = numeric::load(from[j * last.stride]);
      }
    }
  });
}

/// The converse; points of the input that no value stands for are zero.
template <typename T, typename Storage>
DCLS_HD void store_plane(Storage* input, const T* plane, std::int64_t lines, const Axis& last,
                         const Phases& phases) {
  for (std::int64_t j = 0; j < lines * last.input; ++j) numeric::store(input + j, T(0));
  for_phases(last, phases, [&](std::int64_t value, std::int64_t point, std::int64_t count) {
    for (std::int64_t line = 0; line < lines; ++line) {
      const T* const from = plane + line * phases.line + value;
      Storage* const to = input + line * last.input + point;
      if (last.stride == 1) {
        store_row(from, to, count);
      } else {
        for (std::int64_t j = 0; j < count; ++j) numeric::store(to + j * last.stride, from[j]);
      }
    }
  });
}

// ----------------------------------------------------------------------- terms of an axis's sums

/// The grid points of an element on one axis. `value` is that of `lo`.
template <typename T>
struct AxisTaps {
  const T* value;
  std::int64_t cap;  ///< distance to the derivatives
  std::int64_t lo;
  std::int64_t hi;
};
template <int D, typename T>
DCLS_HD AxisTaps<T> taps_of(const TapTable<T>& table, std::int64_t element, int d) {
  const TapRange range = tap_table::range<D>(table, element, d);
  return {tap_table::axis(table, element, d) + (range.lo - range.base), table.layout.cap[d],
          range.lo, range.hi};
}

/// Calls function(from, taps, count) for each phase of the last axis: `from` is where the phase's
/// first grid point is in a line, `taps` its taps, which are a stride apart.
template <typename T, typename Function>
DCLS_HD void for_last_axis(const AxisTaps<T>& taps, const Axis& last, const Phases& phases,
                           Function&& function) {
  if (phases.count == 1) return function(taps.lo, taps.value, taps.hi - taps.lo);
  const std::int64_t end = smaller(taps.hi, taps.lo + last.stride);
  for (std::int64_t x = taps.lo; x < end; ++x) {
    function(x % last.stride * phases.pitch + x / last.stride, taps.value + (x - taps.lo),
             (taps.hi - x + last.stride - 1) / last.stride);
  }
}

/// The terms of output `o` of an axis whose lines are `pitch` apart.
template <typename T>
DCLS_HD Terms<T> terms_of_output(const T* lines, std::int64_t pitch, const AxisTaps<T>& taps,
                                 const Axis& a, std::int64_t o) {
  const std::int64_t origin = o * a.stride - a.padding;  // input point of grid point 0
  const std::int64_t lo = larger(taps.lo, -origin);
  const std::int64_t count = smaller(taps.hi, a.input - origin) - lo;
  if (count <= 0) return {lines, 0, taps.value, 0, 0, 0};
  return {lines + (origin + lo) * pitch, pitch, taps.value + (lo - taps.lo), 1, taps.cap, count};
}

/// The terms of input point `at`: the outputs, whose rows are `pitch` apart, that reach it.
template <typename T>
DCLS_HD Terms<T> terms_of_input(const T* rows, std::int64_t pitch, const AxisTaps<T>& taps,
                                const Axis& a, std::int64_t at) {
  // Output o reaches it through grid point x = place - o * stride: x rises by strides as o falls.
  const std::int64_t place = at + a.padding;
  std::int64_t x = larger(taps.lo, place - (a.output - 1) * a.stride);
  if (a.stride != 1) x += ((place - x) % a.stride + a.stride) % a.stride;
  const std::int64_t end = smaller(taps.hi, place + 1);
  if (x >= end) return {rows, 0, taps.value, 0, 0, 0};
  const std::int64_t o = a.stride == 1 ? place - x : (place - x) / a.stride;
  const std::int64_t count = a.stride == 1 ? end - x : (end - x + a.stride - 1) / a.stride;
  return {rows + o * pitch, -pitch, taps.value + (x - taps.lo), a.stride, taps.cap, count};
}

}  // namespace
}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
