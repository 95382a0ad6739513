// The construct operator on the CPU, compiled once per instruction set.
//
// A row's kernel is built in a padded scratch copy: the last axis is a whole number of vectors, so
// that no loop has a remainder. An element touches only the grid points of its support. The
// versions with two taps on an axis have a path of their own, in construct_pairs.hpp.

#include "cpu/construct/construct_kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/dispatch.hpp"
#include "core/dtype.hpp"
#include "cpu/construct/construct_pairs.hpp"
#include "cpu/simd/rows.hpp"
#include "cpu/simd/vectors.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

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
    const T raw_sigma = sigma != nullptr ? numeric::load(sigma[d * plane + index]) : T(0);
    elements[d] = interp::make_element<T>(numeric::load(position[d * plane + index]), raw_sigma,
                                          static_cast<T>(args.sigma_min), args.size[d]);
  }
  interp::spread_nan(elements);
  for (int d = 0; d < D; ++d) {
    interp::dispatch_version(args.version, [&](auto v) {
      if constexpr (!interp::has_two_taps(v.value)) {
        fill_axis<kOrder, v.value>(w.axis[d], elements[d], args.size[d]);
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

/// line[x] += factor * taps[x] on the support of the last axis.
template <typename T>
DCLS_HD void add_line(T* line, T factor, const AxisTaps<T>& last) {
  for (std::int64_t x = last.vector_lo; x < last.vector_hi; x += kBlock<T>) {
    store_vector(line + x, load_vector(line + x) + factor * load_vector(last.value + x));
  }
}

template <typename T, int D>
DCLS_HD void add_element(const Workspace<T, D>& w, T scale) {
  if constexpr (D == 1) {
    add_line(w.row, scale, w.axis[0]);
  } else if constexpr (D == 2) {
    for (std::int64_t y = w.axis[0].lo; y < w.axis[0].hi; ++y) {
      add_line(w.row + y * w.pitch, scale * w.axis[0].value[y], w.axis[1]);
    }
  } else {
    for (std::int64_t z = w.axis[0].lo; z < w.axis[0].hi; ++z) {
      const T factor = scale * w.axis[0].value[z];
      for (std::int64_t y = w.axis[1].lo; y < w.axis[1].hi; ++y) {
        add_line(w.row + z * w.stride0 + y * w.pitch, factor * w.axis[1].value[y], w.axis[2]);
      }
    }
  }
}

template <typename Storage, int D>
void forward_rows(const ConstructArgs& args, Storage* kernel, std::int64_t begin, std::int64_t end,
                  void* scratch) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  const bool normalised = interp::is_normalised(args.version);
  const std::int64_t width = args.size[D - 1];
  Workspace<T, D> w = make_workspace<T, D>(args, scratch);
  for (std::int64_t row = begin; row < end; ++row) {
    for (std::int64_t i = 0; i < w.lines * w.pitch; ++i) w.row[i] = T(0);
    for (std::int64_t k = 0; k < args.elements; ++k) {
      const std::int64_t index = row * args.elements + k;
      Tap<T> sums[D];
      fill_taps<kValue, Storage>(args, index, w, sums);
      add_element(w, numeric::load(weight[index]) * interp::inverse_norm(sums, normalised));
    }
    Storage* out = kernel + row * w.lines * width;
    for (std::int64_t line = 0; line < w.lines; ++line, out += width) {
      const T* const from = w.row + line * w.pitch;
      store_row(from, out, width);
    }
  }
}

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
        const std::int64_t at = d * plane + index;
        if (grad_position != nullptr) numeric::store(grad_position + at, c.d_position[d]);
        if (grad_sigma != nullptr) {
          const T slope = interp::sigma_slope<T>(numeric::load(sigma[at]));
          numeric::store(grad_sigma + at, c.d_sigma[d] * slope);
        }
      }
    }
  }
}

/// Marks the cells where at most one axis lacks a tap, and has a derivative there: the derivative
/// of a product has one factor differentiated. `lacking` counts the axes before kAxis.
template <int kAxis, typename T, int D>
DCLS_HD void mark_element(const Workspace<T, D>& w, const std::int64_t (&pitch)[D], int lacking,
                          std::uint8_t* cells) {
  const AxisTaps<T>& axis = w.axis[kAxis];
  for (std::int64_t x = axis.lo; x < axis.hi; ++x) {
    const bool moves = axis.d_position[x] != T(0) || axis.d_sigma[x] != T(0);
    const int missing = lacking + (axis.value[x] != T(0) ? 0 : moves ? 1 : 2);
    if (missing > 1) continue;
    std::uint8_t* const at = cells + x * pitch[kAxis];
    if constexpr (kAxis == D - 1) {
      *at = 1;
    } else {
      mark_element<kAxis + 1>(w, pitch, missing, at);
    }
  }
}

template <typename Storage, int D>
void support_rows(const ConstructArgs& args, std::uint8_t* support, std::int64_t begin,
                  std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  Workspace<T, D> w = make_workspace<T, D>(args, scratch);
  std::int64_t pitch[D];
  std::int64_t cells = 1;
  for (int d = D - 1; d >= 0; --d) {
    pitch[d] = cells;
    cells *= args.size[d];
  }
  for (std::int64_t row = begin; row < end; ++row) {
    std::uint8_t* const own = support + row * cells;
    memset(own, 0, static_cast<std::size_t>(cells));
    for (std::int64_t k = 0; k < args.elements; ++k) {
      Tap<T> sums[D];
      fill_taps<kSigma, Storage>(args, row * args.elements + k, w, sums);
      mark_element<0>(w, pitch, 0, own);
    }
  }
}

void forward(const ConstructArgs& args, void* kernel, std::int64_t begin, std::int64_t end,
             void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_ndim(args.ndim, [&](auto ndim) {
      Storage* const to = static_cast<Storage*>(kernel);
      if (interp::has_two_taps(args.version)) {
        return pairs::forward_rows<Storage, ndim()>(args, to, begin, end, scratch);
      }
      forward_rows<Storage, ndim()>(args, to, begin, end, scratch);
    });
  });
}

void backward(const ConstructArgs& args, const void* grad_kernel, const ConstructGrads& grads,
              std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_ndim(args.ndim, [&](auto ndim) {
      const Storage* const grad = static_cast<const Storage*>(grad_kernel);
      if (interp::has_two_taps(args.version)) {
        return pairs::backward_rows<Storage, ndim()>(args, grad, grads, begin, end);
      }
      const auto run = [&](auto order) {
        backward_rows<order(), Storage, ndim()>(args, grad, grads, begin, end, scratch);
      };
      if (grads.sigma != nullptr) return run(std::integral_constant<int, kSigma>{});
      if (grads.position != nullptr) return run(std::integral_constant<int, kPosition>{});
      return run(std::integral_constant<int, kValue>{});
    });
  });
}

void support(const ConstructArgs& args, std::uint8_t* marks, std::int64_t begin, std::int64_t end,
             void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_ndim(args.ndim, [&](auto ndim) {
      if (interp::has_two_taps(args.version)) {
        return pairs::support_rows<Storage, ndim()>(args, marks, begin, end);
      }
      support_rows<Storage, ndim()>(args, marks, begin, end, scratch);
    });
  });
}

std::int64_t scratch_bytes(const ConstructArgs& args) {
  std::int64_t bytes = 0;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using T = Compute<typename decltype(tag)::type>;
    std::int64_t row = padded<T>(args.size[args.ndim - 1]);
    for (int d = 0; d < args.ndim - 1; ++d) row *= args.size[d];
    bytes = static_cast<std::int64_t>(sizeof(T)) * (tap_values<T>(args) + row);
  });
  return bytes;
}

}  // namespace

const ConstructKernels construct_kernels = {&forward, &backward, &support, &scratch_bytes};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
