#pragma once

// Gradients of weights, positions and widths from that of the dense kernel. Only for files compiled
// per instruction set.

#include <cstdint>

#include "cpu/construct/construct_taps.hpp"
#include "cpu/simd/rows.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// Vertical sums over the lines of one vector column: with the taps and with their derivatives.
template <typename T>
struct Column {
  Vector<T> value = {};
  Vector<T> d_position = {};
  Vector<T> d_sigma = {};
};

/// Contracts the axis `axis`, whose lines start `stride` values apart, at one vector column.
template <int kOrder, typename T>
DCLS_HD Column<T> contract_axis(const AxisTaps<T>& axis, const T* grad, std::int64_t stride) {
  Column<T> sum;
  for (std::int64_t y = axis.lo; y < axis.hi; ++y) {
    const Vector<T> g = load_vector(grad + y * stride);
    sum.value += axis.value[y] * g;
    if constexpr (kOrder >= kPosition) sum.d_position += axis.d_position[y] * g;
    if constexpr (kOrder >= kSigma) sum.d_sigma += axis.d_sigma[y] * g;
  }
  return sum;
}

/// Contracts the row's gradient with the taps of one element, the slowest axis first.
template <int kOrder, typename T, int D>
DCLS_HD Contraction<T, D> contract_element(const Workspace<T, D>& w) {
  constexpr int kLast = D - 1;
  const AxisTaps<T>& last = w.axis[kLast];
  Vector<T> value = {};
  Vector<T> d_position[D] = {};
  Vector<T> d_sigma[D] = {};
  for (std::int64_t x = last.vector_lo; x < last.vector_hi; x += kBlock<T>) {
    // The sums over all axes but the last: [e] has the derivative on axis e.
    Vector<T> inner = {};
    [[maybe_unused]] Vector<T> inner_position[D] = {};
    [[maybe_unused]] Vector<T> inner_sigma[D] = {};
    if constexpr (D == 1) {
      inner = load_vector(w.row + x);
    } else if constexpr (D == 2) {
      const Column<T> c = contract_axis<kOrder>(w.axis[0], w.row + x, w.pitch);
      inner = c.value;
      inner_position[0] = c.d_position;
      inner_sigma[0] = c.d_sigma;
    } else {
      for (std::int64_t z = w.axis[0].lo; z < w.axis[0].hi; ++z) {
        const Column<T> c = contract_axis<kOrder>(w.axis[1], w.row + z * w.stride0 + x, w.pitch);
        const AxisTaps<T>& first = w.axis[0];
        inner += first.value[z] * c.value;
        if constexpr (kOrder >= kPosition) {
          inner_position[0] += first.d_position[z] * c.value;
          inner_position[1] += first.value[z] * c.d_position;
        }
        if constexpr (kOrder >= kSigma) {
          inner_sigma[0] += first.d_sigma[z] * c.value;
          inner_sigma[1] += first.value[z] * c.d_sigma;
        }
      }
    }
    const Vector<T> tap = load_vector(last.value + x);
    value += tap * inner;
    if constexpr (kOrder >= kPosition) {
      for (int e = 0; e < kLast; ++e) d_position[e] += tap * inner_position[e];
      d_position[kLast] += load_vector(last.d_position + x) * inner;
    }
    if constexpr (kOrder >= kSigma) {
      for (int e = 0; e < kLast; ++e) d_sigma[e] += tap * inner_sigma[e];
      d_sigma[kLast] += load_vector(last.d_sigma + x) * inner;
    }
  }
  Contraction<T, D> c;
  c.value = sum_lanes<T>(value);
  for (int d = 0; d < D; ++d) {
    c.d_position[d] = kOrder >= kPosition ? sum_lanes<T>(d_position[d]) : T(0);
    c.d_sigma[d] = kOrder >= kSigma ? sum_lanes<T>(d_sigma[d]) : T(0);
  }
  return c;
}

template <int kOrder, typename Storage, int D>
void backward_rows(const ConstructArgs& args, const Storage* grad_kernel,
                   const ConstructGrads& grads, std::int64_t begin, std::int64_t end,
                   void* scratch) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  const Storage* const sigma = static_cast<const Storage*>(args.sigma);
  Storage* const grad_weight = static_cast<Storage*>(grads.weight);
  Storage* const grad_position = static_cast<Storage*>(grads.position);
  Storage* const grad_sigma = static_cast<Storage*>(grads.sigma);
  const bool normalised = interp::is_normalised(args.version);
  const std::int64_t width = args.size[D - 1];
  const std::int64_t plane = args.rows * args.elements;
  Workspace<T, D> w = make_workspace<T, D>(args, scratch);
  for (std::int64_t i = 0; i < w.lines * w.pitch; ++i) w.row[i] = T(0);  // the padding stays zero
  for (std::int64_t row = begin; row < end; ++row) {
    const Storage* from = grad_kernel + row * w.lines * width;
    for (std::int64_t line = 0; line < w.lines; ++line, from += width) {
      T* const to = w.row + line * w.pitch;
      load_row(from, to, width);
    }
    for (std::int64_t k = 0; k < args.elements; ++k) {
      const std::int64_t index = row * args.elements + k;
      Tap<T> sums[D];
      fill_taps<kOrder, Storage>(args, index, w, sums);
      Contraction<T, D> c = contract_element<kOrder>(w);
      interp::finish_gradient<T, D>(c, sums, numeric::load(weight[index]), normalised);
      if (grad_weight != nullptr) numeric::store(grad_weight + index, c.value);
      for (int d = 0; d < D; ++d) {
        const std::int64_t at = args.position_row[d] * plane + index;
        if (grad_position != nullptr) numeric::store(grad_position + at, c.d_position[d]);
        if (grad_sigma != nullptr) {
          const T slope = interp::sigma_slope<T>(numeric::load(sigma[at]));
          numeric::store(grad_sigma + at, c.d_sigma[d] * slope);
        }
      }
    }
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
