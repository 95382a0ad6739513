#pragma once

// Dense kernels from elements, and their support. Only for files compiled per instruction set.
//
// A row's kernel is built in a padded scratch copy: the last axis is a whole number of vectors, so
// that no loop has a remainder. An element touches only the grid points of its support.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/construct/construct_taps.hpp"
#include "cpu/simd/rows.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

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

/// Marks the cells that the element weighs. It moves no others: where a tap of these versions is
/// zero, so are its derivatives.
template <int kAxis, typename T, int D>
DCLS_HD void mark_element(const Workspace<T, D>& w, const std::int64_t (&pitch)[D],
                          std::uint8_t* cells) {
  const AxisTaps<T>& axis = w.axis[kAxis];
  for (std::int64_t x = axis.lo; x < axis.hi; ++x) {
    if (axis.value[x] == T(0)) continue;  // NaN is not zero
    std::uint8_t* const at = cells + x * pitch[kAxis];
    if constexpr (kAxis == D - 1) {
      *at = 1;
    } else {
      mark_element<kAxis + 1>(w, pitch, at);
    }
  }
}

/// Builds the kernels of the rows [begin, end), and marks their support; either may be null.
template <typename Storage, int D>
void forward_rows(const ConstructArgs& args, Storage* kernel, std::uint8_t* support,
                  std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  const bool normalised = interp::is_normalised(args.version);
  const std::int64_t width = args.size[D - 1];
  Workspace<T, D> w = make_workspace<T, D>(args, scratch);
  std::int64_t pitch[D];  // of the support
  std::int64_t cells = 1;
  for (int d = D - 1; d >= 0; --d) {
    pitch[d] = cells;
    cells *= args.size[d];
  }
  for (std::int64_t row = begin; row < end; ++row) {
    std::uint8_t* const marks = support == nullptr ? nullptr : support + row * cells;
    if (marks != nullptr) memset(marks, 0, static_cast<std::size_t>(cells));
    if (kernel != nullptr) {
      for (std::int64_t i = 0; i < w.lines * w.pitch; ++i) w.row[i] = T(0);
    }
    for (std::int64_t k = 0; k < args.elements; ++k) {
      const std::int64_t index = row * args.elements + k;
      Tap<T> sums[D];
      fill_taps<kValue, Storage>(args, index, w, sums);
      if (marks != nullptr) mark_element<0>(w, pitch, marks);
      if (kernel != nullptr) {
        add_element(w, numeric::load(weight[index]) * interp::inverse_norm(sums, normalised));
      }
    }
    if (kernel == nullptr) continue;
    Storage* out = kernel + row * cells;
    for (std::int64_t line = 0; line < w.lines; ++line, out += width) {
      const T* const from = w.row + line * w.pitch;
      store_row(from, out, width);
    }
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
