#pragma once

// The columns: each element contracts the axes of a plane from the last to the first, by weighted
// sums of rows.

#include <cstdint>
#include <type_traits>

#include "cpu/im2col/im2col_plan.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

template <typename T>
struct ForwardScratch {
  T* plane;   ///< of the input
  T* last;    ///< after the last axis: lines * pitch; D > 1
  T* middle;  ///< after the middle axis; D = 3
  T* column;  ///< where the columns are not worked on in place
};
template <typename T, int D>
DCLS_HD ForwardScratch<T> cut_forward(const Plan<T, D>& p, Cutter<T>& cutter) {
  ForwardScratch<T> s{};
  s.plane = cut(cutter, p.lines, p.phases.line);
  if constexpr (D > 1) s.last = cut(cutter, p.lines, p.pitch);
  if constexpr (D == 3) s.middle = cut(cutter, p.axes[0].input, p.axes[1].output, p.pitch);
  if (!p.direct) s.column = cut(cutter, p.rows, p.pitch);
  return s;
}

/// One line of the input to one row of outputs.
template <typename T>
DCLS_HD void sum_last_axis(T* row, const T* line, const AxisTaps<T>& taps, const Axis& last,
                           const Phases& phases, T scale, std::int64_t pitch) {
  T* const to[1] = {row};
  if (phases.count > 1) clear(row, pitch);
  for_last_axis(taps, last, phases, [&](std::int64_t from, const T* tap, std::int64_t count) {
    const Terms<T> terms{line + from, 1, tap, phases.count > 1 ? last.stride : 1, taps.cap, count};
    if (phases.count > 1) {
      combine<1, true>(to, terms, scale, pitch);
    } else {
      combine<1, false>(to, terms, scale, pitch);
    }
  });
}

/// The column of one element, rows `p.pitch` apart. Not inlined: it is the bulk of the code, and
/// need not exist once per storage type.
template <typename T, int D>
__attribute__((noinline)) void make_column(const Plan<T, D>& p, const ForwardScratch<T>& s,
                                           const TapTable<T>& table, std::int64_t element,
                                           T* column) {
  const AxisTaps<T> last = taps_of<D>(table, element, D - 1);
  const T scale = tap_table::scale<D>(table, element);
  const Axis& axis = p.axes[D - 1];
  if constexpr (D == 1) {
    sum_last_axis(column, s.plane, last, axis, p.phases, scale, p.pitch);
  } else if constexpr (D == 2) {
    const AxisTaps<T> first = taps_of<D>(table, element, 0);
    const Lines lines = reached(p.axes[0], first.lo, first.hi);
    for (std::int64_t l = lines.lo; l < lines.hi; ++l) {
      sum_last_axis(s.last + l * p.pitch, s.plane + l * p.phases.line, last, axis, p.phases, scale,
                    p.pitch);
    }
    for (std::int64_t o = 0; o < p.axes[0].output; ++o) {
      T* const to[1] = {column + o * p.pitch};
      combine<1, false>(to, terms_of_output<T>(s.last, p.pitch, first, p.axes[0], o), T(1),
                        p.pitch);
    }
  } else {
    const AxisTaps<T> first = taps_of<D>(table, element, 0);
    const AxisTaps<T> second = taps_of<D>(table, element, 1);
    const Lines slices = reached(p.axes[0], first.lo, first.hi);
    const Lines lines = reached(p.axes[1], second.lo, second.hi);
    const std::int64_t slab = p.axes[1].output * p.pitch;
    for (std::int64_t z = slices.lo; z < slices.hi; ++z) {
      T* const rows = s.last + z * p.axes[1].input * p.pitch;
      for (std::int64_t l = lines.lo; l < lines.hi; ++l) {
        const T* const line = s.plane + (z * p.axes[1].input + l) * p.phases.line;
        sum_last_axis(rows + l * p.pitch, line, last, axis, p.phases, scale, p.pitch);
      }
      for (std::int64_t o = 0; o < p.axes[1].output; ++o) {
        T* const to[1] = {s.middle + z * slab + o * p.pitch};
        combine<1, false>(to, terms_of_output<T>(rows, p.pitch, second, p.axes[1], o), T(1),
                          p.pitch);
      }
    }
    for (std::int64_t o = 0; o < p.axes[0].output; ++o) {
      T* const to[1] = {column + o * slab};
      combine<1, false>(to, terms_of_output<T>(s.middle, slab, first, p.axes[0], o), T(1), slab);
    }
  }
}

template <typename Storage, int D>
void forward_planes(const Im2colArgs& args, const TapLayout& layout, void* memory,
                    std::int64_t cuts, Storage* columns, std::int64_t begin, std::int64_t end,
                    void* scratch) {
  using T = Compute<Storage>;
  const Storage* const input = static_cast<const Storage*>(args.input);
  const Plan<T, D> p = make_plan<Storage, D>(args, layout);
  const TapTable<T> table = tap_table::view<T, D>(layout, memory);
  Cutter<T> cutter{static_cast<T*>(scratch), 0};
  const ForwardScratch<T> s = cut_forward(p, cutter);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t cut_index = item % cuts;
    const std::int64_t i = item / cuts % args.channels;
    const std::int64_t n = item / cuts / args.channels;
    load_plane(s.plane, input + n * args.batch_stride + i * args.channel_stride, p.lines,
               p.axes[D - 1], p.phases);
    const std::int64_t last = args.elements * (cut_index + 1) / cuts;
    for (std::int64_t k = args.elements * cut_index / cuts; k < last; ++k) {
      const std::int64_t element = i * args.elements + k;
      Storage* const column = columns + ((n * args.channels + i) * args.elements + k) * p.outputs;
      const T scale = tap_table::scale<D>(table, element);
      if (scale != scale) {
        for (std::int64_t o = 0; o < p.outputs; ++o) numeric::store(column + o, scale);
        continue;
      }
      if constexpr (std::is_same<T, Storage>::value) {
        if (p.direct) {
          make_column(p, s, table, element, column);
          continue;
        }
      }
      make_column(p, s, table, element, s.column);
      for (std::int64_t row = 0; row < p.rows; ++row) {
        store_row(s.column + row * p.pitch, column + row * p.width, p.width);
      }
    }
  }
}

}  // namespace
}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
