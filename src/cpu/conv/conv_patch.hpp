#pragma once

// The inner loops of the direct convolution. Only for files compiled per instruction set.

#include <cstdint>
#include <type_traits>

#include "cpu/conv/conv_kernels.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

#if defined(__AVX512F__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

/// Rows of the largest patch of kVectors columns: its sums, a run's weights and a value of the
/// source share the registers.
template <int kVectors>
inline constexpr int kPatchRows =
    (kRegisters == 32 ? 24 : 12) / kVectors > 12 ? 12 : (kRegisters == 32 ? 24 : 12) / kVectors;

template <typename T>
DCLS_HD Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

/// sum[y][v] += weight[j] * source[y + j][v] for the runs of one length. A row of the source is
/// loaded once for all the cells of a run.
template <int kLength, int kRows, int kVectors, typename T>
DCLS_HD void add_runs(const RunLists& lists, std::int64_t list, const T* source,
                      std::int64_t source_pitch, Vector<T> (&sum)[kRows][kVectors]) {
  using Run = WeightRun<T, kLength>;
  const Run* const runs = static_cast<const Run*>(lists.runs[kLength - 1]);
  const std::int64_t* const begin = lists.begin[kLength - 1] + list;
  const Run* const end = runs + begin[1];
  for (const Run* run = runs + begin[0]; run != end; ++run) {
    const T* row = source + run->offset;
    Vector<T> weight[kLength];
#pragma GCC unroll 4
    for (int j = 0; j < kLength; ++j) weight[j] = broadcast(run->weight[j]);
#pragma GCC unroll 16
    for (int y = 0; y < kRows + kLength - 1; ++y) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const Vector<T> value = load_vector(row + v * kLanes<T>);
#pragma GCC unroll 4
        for (int j = 0; j < kLength; ++j) {
          if (y - j >= 0 && y - j < kRows) sum[y - j][v] += weight[j] * value;
        }
      }
      row += source_pitch;
    }
  }
}

/// Writes a patch of the destination: `start` plus the sum over the runs of a list, or adds that
/// sum to what is there.
template <int kRows, int kVectors, typename T>
void correlate_patch(const RunLists& lists, std::int64_t list, const T* source,
                     std::int64_t source_pitch, T* dest, std::int64_t dest_pitch, T start,
                     bool accumulate) {
  Vector<T> sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int y = 0; y < kRows; ++y) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[y][v] =
          accumulate ? load_vector(dest + y * dest_pitch + v * kLanes<T>) : broadcast(start);
    }
  }
  add_runs<4>(lists, list, source, source_pitch, sum);
  add_runs<3>(lists, list, source, source_pitch, sum);
  add_runs<2>(lists, list, source, source_pitch, sum);
  add_runs<1>(lists, list, source, source_pitch, sum);
#pragma GCC unroll 16
  for (int y = 0; y < kRows; ++y) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store_vector(dest + y * dest_pitch + v * kLanes<T>, sum[y][v]);
    }
  }
}

/// One function per number of rows.
template <int kVectors, typename T>
struct PatchTable {
  using Function = void (*)(const RunLists&, std::int64_t, const T*, std::int64_t, T*, std::int64_t,
                            T, bool);
  template <int... kRows>
  struct Rows {
    static constexpr Function functions[] = {&correlate_patch<kRows, kVectors, T>...};
  };
  static Function of(std::int64_t rows) {
    if constexpr (kPatchRows<kVectors> == 12) {
      return Rows<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>::functions[rows - 1];
    } else {
      static_assert(kPatchRows<kVectors> == 6, "the lists here");
      return Rows<1, 2, 3, 4, 5, 6>::functions[rows - 1];
    }
  }
};

/// A strip of `rows` rows, cut into patches of about equal height.
template <int kVectors, typename T>
DCLS_HD void correlate_strip(const RunLists& lists, std::int64_t list, const T* source,
                             std::int64_t source_pitch, T* dest, std::int64_t dest_pitch,
                             std::int64_t rows, T start, bool accumulate) {
  std::int64_t patches = (rows + kPatchRows<kVectors> - 1) / kPatchRows<kVectors>;
  for (; patches > 0; --patches) {
    const std::int64_t height = (rows + patches - 1) / patches;
    PatchTable<kVectors, T>::of(height)(lists, list, source, source_pitch, dest, dest_pitch, start,
                                        accumulate);
    source += height * source_pitch;
    dest += height * dest_pitch;
    rows -= height;
  }
}

/// A slice of rows and columns of a tile; `lines` if tiles have a single row, and the lists no run
/// longer than one cell.
template <typename T>
DCLS_HD void correlate_slice(const RunLists& lists, std::int64_t list, const T* source,
                             std::int64_t source_pitch, T* dest, std::int64_t dest_pitch,
                             std::int64_t rows, std::int64_t columns, bool lines, T start,
                             bool accumulate) {
  std::int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
  if (rows == 0) return;
  if (lines) {
    // The vectors of the row are the rows of a patch: more sums in flight than a row's worth.
    return correlate_strip<1>(lists, list, source, kLanes<T>, dest, kLanes<T>, vectors, start,
                              accumulate);
  }
  while (vectors > 0) {
    const auto strip = [&](auto count) {
      constexpr int kVectors = count();
      correlate_strip<kVectors>(lists, list, source, source_pitch, dest, dest_pitch, rows, start,
                                accumulate);
      source += kVectors * kLanes<T>;
      dest += kVectors * kLanes<T>;
      vectors -= kVectors;
    };
    if (kRegisters == 32 && vectors >= 4) {
      strip(std::integral_constant<int, kRegisters == 32 ? 4 : 2>{});
    } else if (vectors >= 2) {
      strip(std::integral_constant<int, 2>{});
    } else {
      strip(std::integral_constant<int, 1>{});
    }
  }
}

/// sums[k][j] += sum over rows and columns of dest[y] * source[y + j] for kRuns runs of kLength
/// cells. `dest` has kMaxRun - 1 rows of zeros before and after its own, or is one row.
template <int kLength, int kRuns, typename T>
void contract_runs(const CellRun* runs, const T* source, std::int64_t source_pitch, const T* dest,
                   std::int64_t dest_pitch, std::int64_t begin, std::int64_t end,
                   std::int64_t vectors, T* sums) {
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
    // recent[j] is the row y - j of the destination.
    Vector<T> recent[kLength];
#pragma GCC unroll 4
    for (int j = 1; j < kLength; ++j) {
      recent[j - 1] = load_vector(dest + (begin - j) * dest_pitch + column);
    }
    std::int64_t at = begin * source_pitch + column;
    const T* row = dest + begin * dest_pitch + column;
    for (std::int64_t y = begin; y < end; ++y) {
#pragma GCC unroll 4
      for (int j = kLength - 1; j > 0; --j) recent[j] = recent[j - 1];
      recent[0] = load_vector(row);
#pragma GCC unroll 8
      for (int k = 0; k < kRuns; ++k) {
        const Vector<T> value = load_vector(from[k] + at);
#pragma GCC unroll 4
        for (int j = 0; j < kLength; ++j) sum[k][j] += recent[j] * value;
      }
      at += source_pitch;
      row += dest_pitch;
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < kRuns; ++k) {
#pragma GCC unroll 4
    for (int j = 0; j < kLength; ++j) store_vector(sums + (k * kLength + j) * kLanes<T>, sum[k][j]);
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
