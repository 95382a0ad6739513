#pragma once

// The construct operator for versions whose elements have two taps on an axis: many elements are
// evaluated side by side, then each visits its 2^D corners. Only for files compiled per instruction
// set.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/dtype.hpp"
#include "cpu/construct/construct_kernels.hpp"
#include "cpu/simd/rows.hpp"
#include "cpu/simd/vectors.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {
namespace pairs {

using interp::Contraction;
using interp::Element;
using interp::Tap;

/// Elements that are evaluated side by side.
inline constexpr int kCount = 32;

/// The taps of kCount elements: [axis][first or second][element].
template <typename T, int D>
struct Block {
  T value[D][2][kCount];
  T d_position[D][2][kCount];
  std::int64_t offset[D][2][kCount];  ///< of the grid point in a row; 0 beside the grid
  Tap<T> sums[kCount][D];             ///< over the grid
  bool finite[kCount];
  bool all_finite;
};

/// Values from one grid point of an axis to the next, and of a whole row.
template <int D>
struct Grid {
  std::int64_t pitch[D];
  std::int64_t cells;

  explicit Grid(const ConstructArgs& args) : cells(1) {
    for (int d = D - 1; d >= 0; --d) {
      pitch[d] = cells;
      cells *= args.size[d];
    }
  }
};

/// The taps of one axis. A tap beside the grid is 0.
template <Version V, typename T, int D>
void fill_axis(Block<T, D>& b, int d, const T* position, std::int64_t points, std::int64_t pitch) {
  const T size = static_cast<T>(points);
#pragma omp simd
  for (int i = 0; i < kCount; ++i) {
    const Element<T> e = interp::make_element<T>(position[i], T(0), T(0), points);
    const T low = interp::floor_of(e.p) + e.centre;
    const Tap<T> first = interp::evaluate<V>(e, low);
    const Tap<T> second = interp::evaluate<V>(e, low + T(1));
    const bool first_inside = low >= T(0) && low < size;
    const bool second_inside = low >= T(-1) && low < size - T(1);
    b.value[d][0][i] = interp::select(first_inside, first.value, T(0));
    b.value[d][1][i] = interp::select(second_inside, second.value, T(0));
    b.d_position[d][0][i] = interp::select(first_inside, first.d_position, T(0));
    b.d_position[d][1][i] = interp::select(second_inside, second.d_position, T(0));
    const T at = interp::select(first_inside, low, T(0));
    const T after = interp::select(second_inside, low + T(1), T(0));
    b.offset[d][0][i] = static_cast<std::int64_t>(static_cast<std::int32_t>(at)) * pitch;
    b.offset[d][1][i] = static_cast<std::int64_t>(static_cast<std::int32_t>(after)) * pitch;
  }
}

/// Evaluates the elements [first, first + count). One that is not finite is NaN on all axes.
template <typename Storage, typename T, int D>
void fill(const ConstructArgs& args, const Grid<D>& grid, std::int64_t first, int count,
          Block<T, D>& b) {
  const Storage* const from = static_cast<const Storage*>(args.position);
  const std::int64_t plane = args.rows * args.elements;
  T position[kCount];
  T poison[kCount] = {};
  for (int d = 0; d < D; ++d) {
    load_row(from + args.position_row[d] * plane + first, position, count);
    for (int i = count; i < kCount; ++i) position[i] = T(0);
    for (int i = 0; i < kCount; ++i) poison[i] += position[i] - position[i];
    interp::visit(args.version, [&](auto v) {
      if constexpr (interp::kHasTwoTaps<v.value>) {
        fill_axis<v.value>(b, d, position, args.size[d], grid.pitch[d]);
      } else {
        abort();
      }
    });
  }
  b.all_finite = true;
  for (int i = 0; i < kCount; ++i) {
    b.finite[i] = poison[i] == T(0);
    b.all_finite = b.all_finite && b.finite[i];
  }
  for (int i = 0; i < kCount && !b.all_finite; ++i) {
    for (int d = 0; d < D && !b.finite[i]; ++d) {
      b.value[d][0][i] = b.d_position[d][0][i] = std::numeric_limits<T>::quiet_NaN();
    }
  }
  for (int i = 0; i < kCount; ++i) {
    for (int d = 0; d < D; ++d) {
      b.sums[i][d] = {b.value[d][0][i] + b.value[d][1][i],
                      b.d_position[d][0][i] + b.d_position[d][1][i], T(0)};
    }
  }
}

/// Calls visit(corner's taps as bits, axis 0 the lowest, and its offset) for the corners.
template <int D, int kAxis = 0, typename T, typename Visit>
DCLS_HD void for_corners(const Block<T, D>& b, int i, const Visit& visit, int bits = 0,
                         std::int64_t offset = 0) {
  if constexpr (kAxis == D) {
    visit(bits, offset);
  } else {
    for_corners<D, kAxis + 1>(b, i, visit, bits, offset + b.offset[kAxis][0][i]);
    for_corners<D, kAxis + 1>(b, i, visit, bits | 1 << kAxis, offset + b.offset[kAxis][1][i]);
  }
}

/// For the elements of the rows [begin, end): calls fill_block(first element, count), and for each
/// of those visit(its place in the block, row, whether it is the first of its row, whether the
/// last).
template <typename Fill, typename Visit>
DCLS_HD void for_elements(const ConstructArgs& args, std::int64_t begin, std::int64_t end,
                          const Fill& fill_block, const Visit& visit) {
  std::int64_t row = begin;
  std::int64_t k = 0;
  const std::int64_t last = end * args.elements;
  for (std::int64_t first = begin * args.elements; first < last; first += kCount) {
    const int count = last - first < kCount ? static_cast<int>(last - first) : kCount;
    fill_block(first, count);
    for (int i = 0; i < count; ++i) {
      const bool ends = k + 1 == args.elements;
      visit(i, row, k == 0, ends);
      k = ends ? 0 : k + 1;
      row += ends ? 1 : 0;
    }
  }
}

/// Marks the corner of an element where at most one axis lacks a tap, and has a derivative there.
template <typename T, int D>
DCLS_HD void mark_corner(const Block<T, D>& b, int i, int bits, std::uint8_t* cell) {
  int lacking = 0;
  for (int d = 0; d < D; ++d) {
    const int tap = bits >> d & 1;
    const int without = b.d_position[d][tap][i] != T(0) ? 1 : 2;
    lacking += b.value[d][tap][i] != T(0) ? 0 : without;
  }
  *cell = static_cast<std::uint8_t>(*cell | (lacking <= 1 ? 1 : 0));
}

/// Builds the kernels of the rows [begin, end), and marks their support; either may be null.
template <typename Storage, int D>
void forward_rows(const ConstructArgs& args, Storage* kernel, std::uint8_t* support,
                  std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const Grid<D> grid(args);
  const std::size_t cells = static_cast<std::size_t>(grid.cells);
  if (args.elements == 0) {  // no row is started
    const std::size_t all = static_cast<std::size_t>(end - begin) * cells;
    if (kernel != nullptr) memset(kernel + begin * grid.cells, 0, all * sizeof(Storage));
    if (support != nullptr) memset(support + begin * grid.cells, 0, all);
    return;
  }
  constexpr bool kInPlace = std::is_same_v<Storage, T>;
  const bool normalised = interp::is_normalised(args.version);
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  Block<T, D> b;
  T scale[kCount];
  for_elements(
      args, begin, end,
      [&](std::int64_t first, int count) {
        fill<Storage>(args, grid, first, count, b);
        if (kernel == nullptr) return;
        load_row(weight + first, scale, count);
        for (int i = 0; i < count; ++i) scale[i] *= interp::inverse_norm(b.sums[i], normalised);
      },
      [&](int i, std::int64_t row, bool starts, bool ends) {
        if (support != nullptr) {
          std::uint8_t* const marks = support + row * grid.cells;
          if (starts) memset(marks, 0, cells);
          if (!b.finite[i]) memset(marks, 1, cells);
          for_corners<D>(b, i, [&](int bits, std::int64_t offset) {
            mark_corner(b, i, bits, marks + offset);
          });
        }
        if (kernel == nullptr) return;
        Storage* const out = kernel + row * grid.cells;
        T* values = static_cast<T*>(scratch);
        if constexpr (kInPlace) values = out;
        if (starts) memset(values, 0, cells * sizeof(T));
        for_corners<D>(b, i, [&](int bits, std::int64_t offset) {
          T value = scale[i];
          for (int d = 0; d < D; ++d) value *= b.value[d][bits >> d & 1][i];
          values[offset] += value;
        });
        if (!b.finite[i]) {  // reaches the whole grid
          for (std::int64_t c = 0; c < grid.cells; ++c) values[c] += b.value[0][0][i];
        }
        if constexpr (!kInPlace) {
          if (ends) store_row(values, out, grid.cells);
        }
      });
}

/// The gradients of kernels whose elements have no widths.
template <typename Storage, int D>
void backward_rows(const ConstructArgs& args, const Storage* grad_kernel,
                   const ConstructGrads& grads, std::int64_t begin, std::int64_t end) {
  using T = Compute<Storage>;
  const Grid<D> grid(args);
  const bool normalised = interp::is_normalised(args.version);
  const std::int64_t plane = args.rows * args.elements;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  Storage* const grad_weight = static_cast<Storage*>(grads.weight);
  Storage* const grad_position = static_cast<Storage*>(grads.position);
  Block<T, D> b;
  std::int64_t block = 0;
  for_elements(
      args, begin, end,
      [&](std::int64_t first, int count) {
        fill<Storage>(args, grid, first, count, b);
        block = first;
      },
      [&](int i, std::int64_t row, bool, bool) {
        const Storage* const grad = grad_kernel + row * grid.cells;
        Contraction<T, D> c = {};
        for_corners<D>(b, i, [&](int bits, std::int64_t offset) {
          const T g = numeric::load(grad[offset]);
          T value = g;
          for (int d = 0; d < D; ++d) value *= b.value[d][bits >> d & 1][i];
          c.value += value;
          for (int e = 0; e < D; ++e) {
            T slope = g * b.d_position[e][bits >> e & 1][i];
            for (int d = 0; d < D; ++d) {
              if (d != e) slope *= b.value[d][bits >> d & 1][i];
            }
            c.d_position[e] += slope;
          }
        });
        const std::int64_t index = block + i;
        interp::finish_gradient<T, D>(c, b.sums[i], numeric::load(weight[index]), normalised);
        if (grad_weight != nullptr) numeric::store(grad_weight + index, c.value);
        for (int d = 0; d < D && grad_position != nullptr; ++d) {
          const std::int64_t at = args.position_row[d] * plane + index;
          numeric::store(grad_position + at, c.d_position[d]);
        }
      });
}

}  // namespace pairs
}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
