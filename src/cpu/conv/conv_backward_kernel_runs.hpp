#pragma once

// The products of the gradient of the dense kernel, run by run. Only for files compiled per
// instruction set.

#include <cstdint>
#include <type_traits>

#include "cpu/conv/conv_pairs.hpp"
#include "cpu/conv/conv_units.hpp"
#include "cpu/simd/rows.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// sums[k][j] += sum over rows and columns of dest[y] * source[y + j] for kRuns runs of kLength
/// cells. `dest` has kMaxRun - 1 rows of zeros before and after its own, or is one row.
///
/// With kEnds the first and the last kLength - 1 rows leave out the products with those zeros.
template <int kLength, int kRuns, bool kEnds, typename T>
void backward_kernel_runs(const CellRun* runs, const T* source, std::int64_t source_pitch,
                          const T* dest, std::int64_t dest_pitch, std::int64_t begin,
                          std::int64_t end, std::int64_t vectors, T* sums) {
  Vector<T> sum[kRuns][kLength];
  const T* from[kRuns];
#pragma GCC unroll 8
  for (int k = 0; k < kRuns; ++k) {
    from[k] = source + runs[k].offset;
#pragma GCC unroll 4
    for (int j = 0; j < kLength; ++j) sum[k][j] = load_vector(sums + (k * kLength + j) * kLanes<T>);
  }
  for (std::int64_t v = 0; v < vectors; ++v) {
    const std::int64_t column = v * kLanes<T>;
    constexpr int kStep = kRowsOfPlane;  // so every value is met once
    // recent[j] is the row y - j of the destination.
    Vector<T> recent[kLength];
    std::int64_t at = begin * source_pitch + column;
    const T* row = dest + begin * dest_pitch + column;
    // The next row of the source, with the rows [first, last] of `recent`.
    const auto add_row = [&](int first, int last) {
#pragma GCC unroll 4
      for (int j = last; j >= kStep; --j) recent[j] = recent[j - kStep];
#pragma GCC unroll 2
      for (int j = first; j < kStep && j < kLength; ++j) {
        recent[j] = load_vector(row - j * dest_pitch);
      }
#pragma GCC unroll 8
      for (int k = 0; k < kRuns; ++k) {
        Vector<T> value = load_vector(from[k] + at);
        if (!kPairs && kLength > 1 && kRuns * kLength + kLength < kRegisters) {
          value = in_register(value);
        }
#pragma GCC unroll 4
        for (int j = first; j <= last; ++j) {
          if constexpr (kPairs) {
            sum[k][j] = add_pairs(sum[k][j], recent[j], value);
          } else {
            sum[k][j] += recent[j] * value;
          }
        }
      }
      at += kStep * source_pitch;
      row += kStep * dest_pitch;
    };
    constexpr int kEndRows = kEnds ? kLength - 1 : 0;
    if constexpr (kEnds) {
#pragma GCC unroll 3
      for (int j = 0; j < kEndRows; ++j) add_row(0, j);
    } else {
#pragma GCC unroll 4
      for (int j = kStep; j < kLength; ++j) {
        recent[j - kStep] = load_vector(dest + (begin - j) * dest_pitch + column);
      }
    }
    for (std::int64_t y = begin + kEndRows; y < end - kEndRows; y += kStep) add_row(0, kLength - 1);
#pragma GCC unroll 3
    for (int j = 1; j <= kEndRows; ++j) add_row(j, kLength - 1);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kRuns; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < kLength; ++j) store_vector(sums + (k * kLength + j) * kLanes<T>, sum[k][j]);
  }
}

/// Calls function(length, runs, count) for the runs of a list, in the order of their sums.
template <typename Function>
DCLS_HD void for_runs(const RunLists& lists, std::int64_t list, const Function& function) {
  const auto call = [&](auto length) {
    const std::int64_t* const begin = lists.begin[length() - 1] + list;
    function(length, static_cast<const CellRun*>(lists.runs[length() - 1]) + begin[0],
             begin[1] - begin[0]);
  };
  call(std::integral_constant<int, 4>{});
  call(std::integral_constant<int, 3>{});
  call(std::integral_constant<int, 2>{});
  call(std::integral_constant<int, 1>{});
}

/// Where a pass reads: the planes of a slice and the rows [begin, end) of it.
template <typename T>
struct Slice {
  const T* source;
  std::int64_t source_pitch;
  const T* dest;
  std::int64_t dest_pitch;
  std::int64_t rows;
  std::int64_t vectors;  ///< of a row
  std::int64_t columns;  ///< values of the first row
  std::int64_t fewer;    ///< of them in each next row: a vector where vectors are taken for rows
  bool exact;            ///< whether nothing but the points of dest may meet the source
  std::int64_t begin;
  std::int64_t end;
  bool last;  ///< whether the rows behind `end`, zeros in dest, are to be taken too
};

/// The sums of one run in the order of backward_kernel_runs, but without the zeros around dest:
/// they would make NaN of values of the source that are not finite and that the cell does not read.
template <int kLength, typename T>
void backward_kernel_exact(const Slice<T>& s, const CellRun& run, std::int64_t end, T* sums) {
  for (std::int64_t v = 0; v < s.vectors; ++v) {
    const std::int64_t column = v * kLanes<T>;
    for (std::int64_t y = s.begin; y < end; ++y) {
      const Vector<T> value =
          first_lanes<T>(load_vector(s.source + run.offset + y * s.source_pitch + column),
                         s.columns - column - y * s.fewer);
      for (int j = 0; j < kLength; ++j) {
        if (y - j < 0 || y - j >= s.rows) continue;
        T* const sum = sums + j * kLanes<T>;
        store_vector(
            sum, load_vector(sum) + load_vector(s.dest + (y - j) * s.dest_pitch + column) * value);
      }
    }
  }
}

/// As many runs at once as the registers hold sums of, then half as many, and so on.
template <int kLength, int kRuns, typename T>
DCLS_HD void backward_kernel_some(const Slice<T>& s, const CellRun*& runs, std::int64_t& count,
                                  T*& sums) {
  const std::int64_t end = s.last ? s.end + kLength - 1 : s.end;
  for (; s.exact && count > 0; --count, ++runs, sums += kLength * kLanes<T>) {
    backward_kernel_exact<kLength>(s, *runs, end, sums);
  }
  // A slice that is no band.
  const bool ends = !kPairs && s.begin == 0 && s.last && s.rows >= kLength - 1;
  const auto add = ends ? &backward_kernel_runs<kLength, kRuns, !kPairs, T>
                        : &backward_kernel_runs<kLength, kRuns, false, T>;
  for (; count >= kRuns; count -= kRuns) {
    add(runs, s.source, s.source_pitch, s.dest, s.dest_pitch, s.begin, end, s.vectors, sums);
    runs += kRuns;
    sums += kRuns * kLength * kLanes<T>;
  }
  if constexpr (kRuns > 1) backward_kernel_some<kLength, kRuns / 2>(s, runs, count, sums);
}

/// sums += the products of one slice of a tile for the cells of a list; returns the end of the
/// list's sums. `source_row`: values of a row of the source.
template <typename T>
DCLS_HD T* backward_kernel_slice(const RunLists& lists, std::int64_t list, Slice<T> s,
                                 std::int64_t source_row, T* sums) {
  // Rows of the source and of the destination take so much of the first-level cache.
  constexpr std::int64_t kBandBytes = 20 << 10;
  const std::int64_t row_bytes = (source_row + s.dest_pitch) * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t fitting = kBandBytes / row_bytes;
  const std::int64_t bands = fitting >= s.rows ? 1
                             : fitting > 8     ? (s.rows - 1) / fitting + 1
                                               : (s.rows - 1) / 8 + 1;
  T* next = sums;
  for (std::int64_t band = 0; band < bands; ++band) {
    // No pair of rows is cut.
    const auto boundary = [&](std::int64_t b) {
      return s.rows / kRowsOfPlane * b / bands * kRowsOfPlane;
    };
    s.last = band == bands - 1;
    s.begin = boundary(band);
    s.end = s.last ? s.rows : boundary(band + 1);
    next = sums;
    for_runs(lists, list, [&](auto length, const CellRun* runs, std::int64_t count) {
      constexpr int kLength = length();
      constexpr int kSums = kRegisters == 32 ? 16 : 8;
      constexpr int kRuns = kLength == 1 ? 8 : kLength == 2 ? kSums / 2 : kSums / 4;
      backward_kernel_some<kLength, kRuns>(s, runs, count, next);
    });
  }
  return next;
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
