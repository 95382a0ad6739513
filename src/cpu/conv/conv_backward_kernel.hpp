#pragma once

// The gradient of the dense kernel. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/conv/conv_fast.hpp"
#include "cpu/conv/conv_pairs.hpp"
#include "cpu/conv/conv_units.hpp"
#include "cpu/simd/rows.hpp"

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
  // Rows of which source and destination stay in the first-level cache.
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

/// Calls function(cell, sum) for the listed cells of a channel. `sum`: of the first one, and then
/// behind the last.
template <typename T, typename Function>
DCLS_HD void for_sums(const ConvPlan& p, std::int64_t list, const T*& sum,
                      const Function& function) {
  for (std::int64_t i = 0; i < p.lists_of_pair(); ++i) {
    for_runs(p.lists, list + i, [&](auto length, const CellRun* runs, std::int64_t count) {
      for (std::int64_t k = 0; k < count; ++k) {
        for (int j = 0; j < length(); ++j) function(runs[k].cell + j * p.cell_step, *sum++);
      }
    });
  }
}

/// The same for the cells of the kernel, which the sums of all classes make. `of_class`: room for
/// those.
template <typename Function>
void combine_cells(const ConvPlan& p, std::int64_t list, const float*& sum, float* of_class,
                   const Function& function) {
  const fast_fir::Cells& cells = p.fast_cells;
  const std::int64_t plane = list / p.lists_of_pair();
  const std::int64_t first = plane * cells.of_classes();
  std::memset(of_class, 0, static_cast<std::size_t>(cells.of_classes()) * sizeof(float));
  for_sums(p, list, sum, [&](std::int64_t cell, float value) { of_class[cell - first] = value; });
  for (std::int64_t z = 0; z < cells.slices; ++z) {
    cells.for_blocks(plane * cells.slices + z, [&](const auto& taps, const auto& classes) {
      float values[fast_fir::kClasses], tap[fast_fir::kBlock];
      for (int i = 0; i < fast_fir::kClasses; ++i) values[i] = of_class[classes[i] - first];
      fast_fir::combine(values, tap);
      for (int j = 0; j < fast_fir::kBlock; ++j) {
        if (taps[j] < 0 || (p.support != nullptr && p.support[taps[j]] == 0)) continue;
        function(taps[j], tap[j]);
      }
    });
  }
}

/// The slices of a tile by the fast FIR algorithm; returns the end of the channel's sums. `dest` is
/// the first row; the planes of the classes have kMaxRun - 1 rows of zeros before and after each
/// slice. `made`: see for_classes.
inline float* backward_kernel_fast(const ConvPlan& p, std::int64_t list, const float* source,
                                   const float* dest, FastScratch& scratch, bool made,
                                   const std::int64_t (&points)[kMaxDims], float* sums) {
  using fast_fir::kBlock, fast_fir::kClasses;
  const std::int64_t slab = p.source_extent[1] * p.source_pitch;
  const std::int64_t dest_slab = (p.tile[1] + 2 * p.dest_margin) * p.dest_pitch;
  const std::int64_t class_slab = (p.tile[1] / kBlock + 2 * p.dest_margin) * p.dest_pitch;
  const std::int64_t blocks = (points[1] + kBlock - 1) / kBlock;
  const std::int64_t vectors = (points[2] + kLanes<float> - 1) / kLanes<float>;
  float* const classes = scratch.classes + p.dest_margin * p.dest_pitch;
  BoundCheck check = scratch.check;  // in a register
  for (std::int64_t z = 0; z < points[0]; ++z) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const float* const from = dest + z * dest_slab + block * kBlock * p.dest_pitch;
      float* const to = classes + z * class_slab + block * p.dest_pitch;
      for (std::int64_t x = 0; x < vectors * kLanes<float>; x += kLanes<float>) {
        Vector<float> row[kBlock], of_class[kClasses];
#pragma GCC unroll 4
        for (int i = 0; i < kBlock; ++i) {
          row[i] = load_vector(from + i * p.dest_pitch + x);
          check.look(row[i]);
        }
        fast_fir::spread(row, of_class);
#pragma GCC unroll 9
        for (int i = 0; i < kClasses; ++i) store_vector(to + i * p.class_plane + x, of_class[i]);
      }
    }
  }
  scratch.check = check;
  float* begin[kClasses + 1] = {sums};
  for (int i = 0; i < kClasses; ++i) {
    begin[i + 1] = begin[i];
    for_runs(p.lists, list + i, [&](auto length, const CellRun*, std::int64_t count) {
      begin[i + 1] += count * length() * kLanes<float>;
    });
  }
  for_classes(p, source, scratch, made, [&](int number, const float* from) {
    for (std::int64_t z = 0; z < points[0]; ++z) {
      const float* const to = classes + number * p.class_plane + z * class_slab;
      const Slice<float> slice{from + z * slab,
                               kBlock * p.source_pitch,
                               to,
                               p.dest_pitch,
                               blocks,
                               vectors,
                               points[2],
                               0,
                               false,
                               0,
                               0,
                               false};
      backward_kernel_slice(p.lists, list + number, slice, p.source_pitch, begin[number]);
    }
  });
  return begin[kClasses];
}

template <typename T>
DCLS_HD bool any_nan(const T* values, std::int64_t count) {
  bool any = false;
  for (std::int64_t i = 0; i < count; ++i) any |= values[i] != values[i];
  return any;
}

template <typename Storage>
bool backward_kernel_units(const ConvPlan& p, const Storage* source, const Storage* dest,
                           Storage* grad_kernel, Compute<Storage>* partial, std::int64_t cells,
                           std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const std::int64_t group_planes = p.source_block * p.source.phase_count() * p.source_plane;
  T* const sums = static_cast<T*>(scratch);
  T* const source_planes = sums + p.unit_cells * kLanes<T>;
  T* const dest_planes = source_planes + p.group_block * group_planes;
  FastScratch fast(
      p, reinterpret_cast<float*>(dest_planes + p.group_block * p.dest_block * p.dest_plane));
  const std::int64_t source_slab = p.source_extent[1] * p.source_pitch;
  const std::int64_t dest_slab = (p.tile[1] + 2 * p.dest_margin) * p.dest_pitch;
  const bool lines = p.tile[1] == 1;
  for (std::int64_t unit = begin; unit < end; ++unit) {
    std::int64_t rest = unit;
    const std::int64_t split = rest % p.splits;
    rest /= p.splits;
    const std::int64_t block = rest % p.source_blocks();
    const Range sources = block_range(block, p.source_block, p.source.channels);
    rest /= p.source_blocks();
    const Range channels = block_range(rest % p.dest_blocks(), p.dest_block, p.dest.channels);
    const Range groups = block_range(rest / p.dest_blocks(), p.group_block, p.groups);
    const std::int64_t group_count = groups.end - groups.begin;
    const std::int64_t source_count = group_count * (sources.end - sources.begin);
    const std::int64_t dest_count = group_count * (channels.end - channels.begin);
    const std::int64_t source_first = groups.begin * p.source.channels + sources.begin;
    const std::int64_t dest_first = groups.begin * p.dest.channels + channels.begin;
    const auto for_lists = [&](const auto& function) {
      for (std::int64_t g = groups.begin; g < groups.end; ++g) {
        for (std::int64_t c = channels.begin; c < channels.end; ++c) {
          const std::int64_t slot =
              (g - groups.begin) * (channels.end - channels.begin) + c - channels.begin;
          function(p.list_index(g * p.dest.channels + c, 0, block), g - groups.begin, slot);
        }
      }
    };
    const auto add_up = [&](bool exact) {
      for (std::int64_t i = 0; i < p.unit_cells * kLanes<T>; ++i) sums[i] = T(0);
      const std::int64_t items = p.tile_count() * p.batch;  // the images of the tiles
      std::int64_t zeroed_tile = -1;
      for (std::int64_t i = items * split / p.splits; i < items * (split + 1) / p.splits; ++i) {
        const std::int64_t tile = i / p.batch;
        const std::int64_t n = i % p.batch;
        std::int64_t origin[kMaxDims];
        tile_origin(p, tile, origin);
        const PlaneBox from = source_box(p, origin);
        const PlaneBox at = dest_box(p, origin);
        std::int64_t points[kMaxDims];
        for (int d = 0; d < kMaxDims; ++d) {
          points[d] = clamp(p.dest.size[d] - origin[d], 0, p.tile[d]);
        }
        const std::int64_t vectors = (points[2] + kLanes<T> - 1) / kLanes<T>;
        const std::int64_t ready = tile == zeroed_tile ? source_count + dest_count : 0;
        if (p.fast && tile != zeroed_tile) fast.begin_tile(p, from);
        zeroed_tile = tile;
        load_planes(p.source, from,
                    source + n * p.source.batch_step + source_first * p.source.channel_step,
                    source_count, ready, source_planes);
        load_planes(p.dest, at, dest + n * p.dest.batch_step + dest_first * p.dest.channel_step,
                    dest_count, ready, dest_planes);
        if constexpr (kPairs) {
          if (!exact) {
            pair_rows(p.source, from, source_count, source_planes);
            pair_rows(p.dest, at, dest_count, dest_planes);
          }
        }
        T* next = sums;
        for_lists([&](std::int64_t list, std::int64_t group, std::int64_t slot) {
          T* list_end = next;
          if constexpr (kHasFast<T>) {
            if (p.fast) {
              next = backward_kernel_fast(
                  p, list, source_planes + group * group_planes,
                  dest_planes + slot * p.dest_plane + p.dest_margin * p.dest_pitch, fast,
                  slot % (channels.end - channels.begin) > 0, points, next);
              return;
            }
          }
          for (std::int64_t z = 0; z < points[0]; ++z) {
            const T* const from_slice = source_planes + group * group_planes + z * source_slab;
            const T* const at_slice =
                dest_planes + slot * p.dest_plane + z * dest_slab + p.dest_margin * p.dest_pitch;
            // One row: its vectors are the rows.
            Slice<T> slice{from_slice, p.source_pitch, at_slice, p.dest_pitch, points[1],
                           vectors,    points[2],      0,        exact,        0,
                           0,          false};
            if (lines) {
              slice.source_pitch = slice.dest_pitch = slice.fewer = kLanes<T>;
              slice.rows = vectors;
              slice.vectors = 1;
            }
            list_end = backward_kernel_slice(p.lists, list, slice, slice.source_pitch, next);
          }
          next = list_end;
        });
      }
      for (std::int64_t i = 0; i < p.unit_cells; i += kLanes<T>) {
        store_vector(sums + i, sum_rows<T>(sums + i * kLanes<T>));
      }
    };
    add_up(false);
    if (!fast.check.fit()) return false;
    // Not a number: of what it reads, or of a zero around it. Then once more, to know.
    if (any_nan(sums, p.unit_cells)) add_up(true);
    const T* sum = sums;
    const auto write = [&](std::int64_t cell, T value) {
      if (partial == nullptr) {
        numeric::store(grad_kernel + cell, value);
      } else {
        partial[split * cells + cell] = value;
      }
    };
    for_lists([&](std::int64_t list, std::int64_t, std::int64_t) {
      if constexpr (kHasFast<T>) {
        if (p.fast) return combine_cells(p, list, sum, fast.cells, write);
      }
      for_sums(p, list, sum, write);
    });
  }
  return true;
}

template <typename Storage>
void reduce_cells(const ConvPlan& p, const Compute<Storage>* partial, Storage* grad_kernel,
                  std::int64_t cells, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) {
    Compute<Storage> sum = 0;
    for (std::int64_t s = 0; s < p.splits; ++s) sum += partial[s * cells + i];
    numeric::store(grad_kernel + i, sum);
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
