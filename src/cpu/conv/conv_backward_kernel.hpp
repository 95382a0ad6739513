#pragma once

// The gradient of the dense kernel: its units. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>

#include "cpu/conv/conv_backward_kernel_runs.hpp"
#include "cpu/conv/conv_fast.hpp"
#include "cpu/conv/conv_pairs.hpp"
#include "cpu/conv/conv_units.hpp"
#include "cpu/simd/rows.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

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
