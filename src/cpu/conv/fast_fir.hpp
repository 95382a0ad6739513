#pragma once

// Fewer products along the rows of dense kernels: the fast FIR algorithm of two outputs and two
// taps, F(2, 2) of S. Winograd ("Arithmetic Complexity of Computations", SIAM 1980), nested.
//
// Two outputs of two taps are
//
//   y0 = x0 h0 + x1 h1        m0 = (x0 - x1) h0     m1 = x1 (h0 + h1)     m2 = (x1 - x2) h1
//   y1 = x1 h0 + x2 h1        y0 = m0 + m1          y1 = m1 - m2
//
// with three products in the place of four. The x may be rows of an image, and the h rows of a
// kernel. A second level has outputs and taps two rows apart, and in the place of each product the
// first level: blocks of four rows take nine products in the place of sixteen. The differences of x
// are made once for all cells of a kernel, the sums of m once for all its blocks. A third level
// gained nothing: 27 products for 64, but twice as many planes of differences as the second.
//
// A product has a class, a digit 0, 1 or 2 for each level: which m it belongs to. All three passes
// consist of the same steps:
//
// - differences of the input, along the levels where the digit is not 1;
// - `spread`: each class gets a sum of rows, of the kernel or of the output's gradient;
// - the products, each class a convolution of its own whose rows are a block apart;
// - `combine`: the results of the classes become rows of the output or of the kernel's gradient.
//
// An output meets no value that its block of taps does not read. But infinities cancel to NaN, and
// a zero can become the rounding of what its neighbours in the block have.

#include <cstdint>

#include "core/macros.hpp"

namespace dcls::cpu::fast_fir {

inline constexpr int kLevels = 2;
inline constexpr int kBlock = 1 << kLevels;
inline constexpr int kClasses = 9;

/// Input, kernel and gradients below this cannot overflow any sum. With others, infinite or NaN
/// among them, a pass takes the cells one by one.
inline constexpr float kMost = 0x1p48f;

/// What the products of a class take: the input's rows from `offset` on, of the plane with the
/// differences along the levels whose bits are set in `plane`, and the sum of the taps `taps`.
struct Class {
  int plane;
  int offset;
  unsigned taps;
};

constexpr Class class_of(int number) {
  Class c{0, 0, 1};
  for (int level = 0; level < kLevels; ++level, number /= 3) {
    const int digit = number % 3;
    const int distance = 1 << level;
    if (digit != 1) c.plane |= distance;
    if (digit != 0) c.offset += distance;
    const unsigned upper = c.taps << distance;
    c.taps = digit == 0 ? c.taps : digit == 1 ? c.taps | upper : upper;
  }
  return c;
}

/// The sums of a block's rows by class.
template <typename Value>
DCLS_HD void spread(const Value (&row)[kBlock], Value (&of_class)[kClasses]) {
  const Value pairs[3][2] = {
      {row[0], row[1]}, {row[0] + row[2], row[1] + row[3]}, {row[2], row[3]}};
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    of_class[3 * i] = pairs[i][0];
    of_class[3 * i + 1] = pairs[i][0] + pairs[i][1];
    of_class[3 * i + 2] = pairs[i][1];
  }
}

/// The rows that the products of all classes make.
template <typename Value>
DCLS_HD void combine(const Value (&of_class)[kClasses], Value (&row)[kBlock]) {
  Value pairs[3][2];
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    pairs[i][0] = of_class[3 * i] + of_class[3 * i + 1];
    pairs[i][1] = of_class[3 * i + 1] - of_class[3 * i + 2];
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    row[i] = pairs[0][i] + pairs[1][i];
    row[2 + i] = pairs[1][i] - pairs[2][i];
  }
}

/// Where the taps of a kernel lie, and where its classes, which are listed in the order (class,
/// slice, column, block of rows) of a plane: that in which they are visited.
struct Cells {
  std::int64_t slices;  ///< of a plane
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t blocks;             ///< of rows
  const std::int64_t* row_of_tap;  ///< of all blocks; -1: none

  std::int64_t of_classes() const { return kClasses * slices * columns * blocks; }

  /// Calls function(taps, classes) for the blocks of a slice's columns, with their places in the
  /// kernel and in what is listed; -1: there is no tap. `slice`: among those of all planes.
  template <typename Function>
  void for_blocks(std::int64_t slice, const Function& function) const {
    const std::int64_t first = slice / slices * of_classes();
    const std::int64_t z = slice % slices;
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t* const row = row_of_tap + block * kBlock;
      for (std::int64_t x = 0; x < columns; ++x) {
        std::int64_t taps[kBlock], classes[kClasses];
        for (int j = 0; j < kBlock; ++j) {
          taps[j] = row[j] < 0 ? -1 : (slice * rows + row[j]) * columns + x;
        }
        for (int i = 0; i < kClasses; ++i) {
          classes[i] = first + ((i * slices + z) * columns + x) * blocks + block;
        }
        function(taps, classes);
      }
    }
  }
};

}  // namespace dcls::cpu::fast_fir
