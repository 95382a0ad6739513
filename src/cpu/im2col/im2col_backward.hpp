#pragma once

// The gradients: each element goes through the axes from the first to the last, to one line of the
// input at a time, where it meets both the input, for the gradients of the taps, and the gradient
// of the input.

#include <cstdint>
#include <type_traits>

#include "cpu/im2col/im2col_plan.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

/// Which gradients the sums serve; kOut rows come of one sum: value, d_position, d_sigma.
enum Order : int { kInput = 0, kPosition = 1, kSigma = 2 };

template <typename T>
struct BackwardScratch {
  T* plane;       ///< of the input
  T* grad_plane;  ///< of the input's gradient
  T* grad;        ///< the column's gradient, where it is not worked on in place
  T* slices[3];   ///< of it after the first axis, and with that axis's derivatives; D = 3
  T* rows[5];     ///< of a line: the value, position of the axes but the last, sigma of them
};
template <int kOrder, typename T, int D>
DCLS_HD BackwardScratch<T> cut_backward(const Plan<T, D>& p, Cutter<T>& cutter) {
  BackwardScratch<T> s{};
  if (kOrder >= kPosition) s.plane = cut(cutter, p.lines, p.phases.line);
  s.grad_plane = cut(cutter, p.lines, p.phases.line);
  if (!p.direct) s.grad = cut(cutter, p.rows, p.pitch);
  if constexpr (D == 3) {
    for (int o = 0; o <= kOrder; ++o) {
      s.slices[o] = cut(cutter, p.axes[0].input, p.axes[1].output, p.pitch);
    }
  }
  for (int r = 0; r < 1 + kOrder * (D - 1); ++r) {
    s.rows[r] = cut(cutter, 2 * p.margin + whole_vectors<T>(p.width) + kLanes<T>);
    if (s.rows[r] != nullptr) s.rows[r] += p.margin;
  }
  return s;
}

/// An element's gradient as it goes through the axes.
template <typename T, int D>
struct ElementTaps {
  AxisTaps<T> axis[D];
  T scale;
};

/// The rows of a line: the column's gradient, contracted with the taps of all axes but the last.
/// `slice` and `l` are the line's points on the first axis (D = 3) and on the last but one.
template <int kOrder, typename T, int D>
DCLS_HD void make_rows(const Plan<T, D>& p, const BackwardScratch<T>& s, const ElementTaps<T, D>& e,
                       const T* grad, std::int64_t slice, std::int64_t l) {
  constexpr int kOut = kOrder + 1;
  if constexpr (D == 1) {
    for (std::int64_t v = 0; v < p.width; ++v) s.rows[0][v] = grad[v];
  } else if constexpr (D == 2) {
    T* to[kOut];
    for (int o = 0; o < kOut; ++o) to[o] = s.rows[o];
    combine<kOut, false>(to, terms_of_input(grad, p.pitch, e.axis[0], p.axes[0], l), T(1), p.pitch);
  } else {
    const std::int64_t start = slice * p.axes[1].output * p.pitch;
    T* to[kOut] = {s.rows[0]};
    if constexpr (kOrder >= kPosition) to[1] = s.rows[2];
    if constexpr (kOrder >= kSigma) to[2] = s.rows[4];
    Terms<T> terms = terms_of_input<T>(s.slices[0] + start, p.pitch, e.axis[1], p.axes[1], l);
    combine<kOut, false>(to, terms, T(1), p.pitch);
    for (int o = 1; o < kOut; ++o) {
      terms.from += s.slices[o] - s.slices[o - 1];
      T* const derivative[1] = {s.rows[2 * o - 1]};
      combine<1, false>(derivative, terms, T(1), p.pitch);
    }
  }
}

/// Adds the products of a line's rows with the interpolated line of the input to the sums.
template <int kOrder, typename T, int D>
DCLS_HD void add_products(const Plan<T, D>& p, const BackwardScratch<T>& s,
                          const ElementTaps<T, D>& e, const T* line, Vector<T> (&sums)[1 + 2 * D]) {
  constexpr int kOut = kOrder + 1;
  constexpr int kLast = D - 1;
  for (std::int64_t v = 0; v < p.width; v += kLanes<T>) {
    Vector<T> h[kOut][1] = {};
    for_last_axis(e.axis[kLast], p.axes[kLast], p.phases,
                  [&](std::int64_t from, const T* tap, std::int64_t count) {
                    const std::int64_t step = p.phases.count > 1 ? p.axes[kLast].stride : 1;
                    sum_vectors<kOut, 1>(
                        Terms<T>{line + from, 1, tap, step, e.axis[kLast].cap, count}, v, h);
                  });
    // Behind the row's end there are zeros in the rows, but anything in the input.
    if (v + kLanes<T> > p.width) {
      for (int o = 0; o < kOut; ++o) h[o][0] = first_lanes<T>(h[o][0], p.width - v);
    }
    const Vector<T> value = load_vector(s.rows[0] + v);
    sums[0] += value * h[0][0];
    if constexpr (kOrder >= kPosition) {
      for (int d = 0; d < kLast; ++d) sums[1 + d] += load_vector(s.rows[1 + d] + v) * h[0][0];
      sums[1 + kLast] += value * h[1][0];
    }
    if constexpr (kOrder >= kSigma) {
      for (int d = 0; d < kLast; ++d) {
        sums[1 + D + d] += load_vector(s.rows[1 + kLast + d] + v) * h[0][0];
      }
      sums[1 + D + kLast] += value * h[2][0];
    }
  }
}

/// Spreads a line's first row over the gradient of the input.
template <typename T, int D>
DCLS_HD void spread(const Plan<T, D>& p, const BackwardScratch<T>& s, const ElementTaps<T, D>& e,
                    T* line) {
  const Axis& last = p.axes[D - 1];
  for_last_axis(e.axis[D - 1], last, p.phases,
                [&](std::int64_t from, const T* tap, std::int64_t count) {
                  const std::int64_t step = p.phases.count > 1 ? last.stride : 1;
                  T* const to[1] = {line + from};
                  combine<1, true>(to, Terms<T>{s.rows[0], -1, tap, step, 0, count}, e.scale,
                                   whole_vectors<T>(p.width + count - 1));
                });
}

/// One element of one plane: adds to the sums and to the gradient of the plane. Not inlined, as
/// make_column.
template <int kOrder, typename T, int D>
__attribute__((noinline)) void backward_element(const Plan<T, D>& p, const BackwardScratch<T>& s,
                                                const ElementTaps<T, D>& e, const T* grad,
                                                bool with_input, T* sums) {
  Vector<T> parts[1 + 2 * D] = {};
  Lines slices{0, 1};
  Lines lines{0, 1};
  if constexpr (D > 1) lines = reached(p.axes[D - 2], e.axis[D - 2].lo, e.axis[D - 2].hi);
  if constexpr (D == 3) {
    slices = reached(p.axes[0], e.axis[0].lo, e.axis[0].hi);
    const std::int64_t slab = p.axes[1].output * p.pitch;
    for (std::int64_t z = slices.lo; z < slices.hi; ++z) {
      T* to[kOrder + 1];
      for (int o = 0; o <= kOrder; ++o) to[o] = s.slices[o] + z * slab;
      combine<kOrder + 1, false>(to, terms_of_input(grad, slab, e.axis[0], p.axes[0], z), T(1),
                                 slab);
    }
  }
  // Between the lines that a stride reaches there are others, which no output meets.
  const auto met = [&](int d, std::int64_t at) {
    return p.axes[d].stride == 1 ||
           terms_of_input(grad, p.pitch, e.axis[d], p.axes[d], at).count > 0;
  };
  for (std::int64_t z = slices.lo; z < slices.hi; ++z) {
    if (D == 3 && !met(0, z)) continue;
    for (std::int64_t l = lines.lo; l < lines.hi; ++l) {
      if (D > 1 && !met(D > 1 ? D - 2 : 0, l)) continue;
      const std::int64_t line = D == 3 ? z * p.axes[D == 3 ? 1 : 0].input + l : l;
      make_rows<kOrder>(p, s, e, grad, z, l);
      if constexpr (kOrder >= kPosition) {
        add_products<kOrder>(p, s, e, s.plane + line * p.phases.line, parts);
      }
      if (with_input) spread(p, s, e, s.grad_plane + line * p.phases.line);
    }
  }
  if constexpr (kOrder >= kPosition) {
    for (int j = 0; j < 1 + kOrder * D; ++j) sums[j] += sum_lanes<T>(parts[j]);
  }
}

template <int kOrder, typename Storage, int D>
void backward_planes(const Im2colArgs& args, const TapLayout& layout, void* memory,
                     const Storage* grad_columns, const Im2colGrads& grads, std::int64_t begin,
                     std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  constexpr std::int64_t kSums = tap_table::sums_of(D);
  const Storage* const input = static_cast<const Storage*>(args.input);
  Storage* const grad_input = static_cast<Storage*>(grads.input);
  const bool with_input = grad_input != nullptr;
  const Plan<T, D> p = make_plan<Storage, D>(args, layout);
  const Axis& last = p.axes[D - 1];
  const TapTable<T> table = tap_table::view<T, D>(layout, memory);
  Cutter<T> cutter{static_cast<T*>(scratch), 0};
  const BackwardScratch<T> s = cut_backward<kOrder>(p, cutter);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t i = item / grads.parts;
    const std::int64_t part = item % grads.parts;
    for (std::int64_t n = part; n < args.batch; n += grads.parts) {
      if constexpr (kOrder >= kPosition) {
        load_plane(s.plane, input + n * args.batch_stride + i * args.channel_stride, p.lines, last,
                   p.phases);
      }
      if (with_input) clear(s.grad_plane, p.lines * p.phases.line);
      T poison = T(0);
      for (std::int64_t k = 0; k < args.elements; ++k) {
        const std::int64_t element = i * args.elements + k;
        ElementTaps<T, D> e;
        for (int d = 0; d < D; ++d) e.axis[d] = taps_of<D>(table, element, d);
        e.scale = tap_table::scale<D>(table, element);
        if (e.scale != e.scale) {
          poison = e.scale;
          continue;
        }
        const Storage* const column =
            grad_columns + ((n * args.channels + i) * args.elements + k) * p.outputs;
        const T* grad = s.grad;
        bool in_place = false;
        if constexpr (std::is_same<T, Storage>::value) {
          in_place = p.direct;
          if (in_place) grad = column;
        }
        for (std::int64_t row = 0; row < p.rows && !in_place; ++row) {
          load_row(column + row * p.width, s.grad + row * p.pitch, p.width);
        }
        T* const sums = kOrder >= kPosition ? static_cast<T*>(grads.sums) +
                                                  (part * layout.elements + element) * kSums
                                            : nullptr;
        backward_element<kOrder>(p, s, e, grad, with_input, sums);
      }
      if (!with_input) continue;
      Storage* const to = grad_input + n * grads.batch_stride + i * grads.channel_stride;
      store_plane(to, s.grad_plane, p.lines, last, p.phases);
      for (std::int64_t j = 0; j < p.lines * last.input && poison != poison; ++j) {
        numeric::store(to + j, poison);
      }
    }
  }
}

}  // namespace
}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
