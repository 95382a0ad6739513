#pragma once

// Forward pass and gradient of the input. Only for files compiled per instruction set.

#include <cstdint>
#include <type_traits>

#include "cpu/conv/conv_fast.hpp"
#include "cpu/conv/conv_pairs.hpp"
#include "cpu/conv/conv_prefetch.hpp"
#include "cpu/conv/conv_units.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// Sums of the largest patch: a run's weights and a value of the source share the registers with
/// them.
inline constexpr int kPatchSums = kRegisters == 32 ? 24 : 12;

/// Rows of the largest patch of kVectors columns.
template <int kVectors>
inline constexpr int kPatchRows = kPatchSums / kVectors > 12 ? 12 : kPatchSums / kVectors;

/// Where there are fewer rows, narrow strips have patches of more sums than wide ones.
inline constexpr std::int64_t kWideStripRows = 16;

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
    if constexpr (kPairs) {
      add_run_of_pairs(*run, row, source_pitch, sum);
      continue;
    }
    Vector<T> weight[kLength];
#pragma GCC unroll 4
    for (int j = 0; j < kLength; ++j) weight[j] = broadcast(run->weight[j]);
#pragma GCC unroll 16
    for (int y = 0; y < kRows + kLength - 1; ++y) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        Vector<T> value = load_vector(row + v * kLanes<T>);
        // Of one cell there is one product.
        if (kLength > 1 && kRows * kVectors + kLength < kRegisters) value = in_register(value);
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
void forward_patch(const RunLists& lists, std::int64_t list, const T* source,
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
    static constexpr Function functions[] = {&forward_patch<kRows, kVectors, T>...};
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
DCLS_HD void forward_strip(const RunLists& lists, std::int64_t list, const T* source,
                           std::int64_t source_pitch, T* dest, std::int64_t dest_pitch,
                           std::int64_t rows, T start, bool accumulate, Ahead& ahead) {
  std::int64_t patches = (rows + kPatchRows<kVectors> - 1) / kPatchRows<kVectors>;
  for (; patches > 0; --patches) {
    const std::int64_t height = (rows + patches - 1) / patches;
    ahead.some();
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
DCLS_HD void forward_slice(const RunLists& lists, std::int64_t list, const T* source,
                           std::int64_t source_pitch, T* dest, std::int64_t dest_pitch,
                           std::int64_t rows, std::int64_t columns, bool lines, T start,
                           bool accumulate, Ahead& ahead) {
  std::int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
  if (rows == 0) return;
  if (lines) {
    // The vectors of the row are the rows of a patch: more sums in flight than a row's worth.
    return forward_strip<1>(lists, list, source, kLanes<T>, dest, kLanes<T>, vectors, start,
                            accumulate, ahead);
  }
  while (vectors > 0) {
    const auto strip = [&](auto count) {
      constexpr int kVectors = count();
      forward_strip<kVectors>(lists, list, source, source_pitch, dest, dest_pitch, rows, start,
                              accumulate, ahead);
      source += kVectors * kLanes<T>;
      dest += kVectors * kLanes<T>;
      vectors -= kVectors;
    };
    if (kRegisters == 32 && vectors >= 4 && rows >= kWideStripRows) {
      strip(std::integral_constant<int, kRegisters == 32 ? 4 : 2>{});
    } else if (vectors >= 2) {
      strip(std::integral_constant<int, 2>{});
    } else {
      strip(std::integral_constant<int, 1>{});
    }
  }
}

/// The slices of a tile by the fast FIR algorithm. `made`: see for_classes.
inline void forward_fast(const ConvPlan& p, std::int64_t list, const float* source,
                         FastScratch& scratch, bool made, const std::int64_t (&points)[kMaxDims],
                         float start, float* dest, Ahead& ahead) {
  using fast_fir::kBlock, fast_fir::kClasses;
  const std::int64_t blocks = (points[1] + kBlock - 1) / kBlock;
  const std::int64_t slab = p.source_extent[1] * p.source_pitch;
  const std::int64_t class_slab = p.tile[1] / kBlock * p.dest_pitch;
  for_classes(p, source, scratch, made, [&](int number, const float* from) {
    float* to = scratch.classes + number * p.class_plane;
    for (std::int64_t z = 0; z < points[0]; ++z, from += slab, to += class_slab) {
      forward_slice(p.lists, list + number, from, kBlock * p.source_pitch, to, p.dest_pitch, blocks,
                    points[2], false, 0.0f, false, ahead);
    }
  });
  for (std::int64_t z = 0; z < points[0]; ++z) {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const float* const from = scratch.classes + z * class_slab + block * p.dest_pitch;
      float* const to = dest + (z * p.tile[1] + block * kBlock) * p.dest_pitch;
      for (std::int64_t x = 0; x < points[2]; x += kLanes<float>) {
        Vector<float> of_class[kClasses], row[kBlock];
#pragma GCC unroll 9
        for (int i = 0; i < kClasses; ++i) of_class[i] = load_vector(from + i * p.class_plane + x);
        fast_fir::combine(of_class, row);
#pragma GCC unroll 4
        for (int i = 0; i < kBlock; ++i) store_vector(to + i * p.dest_pitch + x, row[i] + start);
      }
    }
  }
}

template <typename Storage>
bool forward_units(const ConvPlan& p, const Storage* source, const Storage* bias, Storage* dest,
                   std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const std::int64_t group_planes = p.source_block * p.source.phase_count() * p.source_plane;
  T* const source_planes = static_cast<T*>(scratch);
  T* const dest_planes = source_planes + p.group_block * group_planes;
  FastScratch fast(
      p, reinterpret_cast<float*>(dest_planes + p.group_block * p.dest_block * p.dest_plane));
  const std::int64_t slab = p.source_extent[1] * p.source_pitch;
  const bool one_block = p.source_blocks() == 1;
  // Written at once, while it is in the first-level cache, unless a cache line has more channels.
  const bool store_each = one_block && p.dest.channel_step != 1;
  std::int64_t zeroed_tile = -1;
  std::int64_t ready = 0;  // source planes whose surrounding zeros are those of this tile
  for (std::int64_t unit = begin; unit < end; ++unit) {
    std::int64_t rest = unit;
    const Range channels = block_range(rest % p.dest_blocks(), p.dest_block, p.dest.channels);
    rest /= p.dest_blocks();
    const Range groups = block_range(rest % p.group_blocks(), p.group_block, p.groups);
    rest /= p.group_blocks();
    const std::int64_t n = rest % p.batch;
    const std::int64_t tile = rest / p.batch;
    std::int64_t origin[kMaxDims];
    tile_origin(p, tile, origin);
    const PlaneBox from = source_box(p, origin);
    const PlaneBox to = dest_box(p, origin);
    constexpr std::int64_t kPatch = kPatchSums * kLanes<T>;
    Ahead ahead{{}, prefetch_unit(p, p.dest, dest, unit, kPatch)};
    if (unit + 1 < end) ahead.source = prefetch_unit(p, p.source, source, unit + 1, kPatch);
    if (tile != zeroed_tile) {
      ready = 0;
      if (p.fast) fast.begin_tile(p, from);
    }
    zeroed_tile = tile;
    const std::int64_t first = groups.begin * p.dest.channels + channels.begin;
    Storage* const target = dest + n * p.dest.batch_step + first * p.dest.channel_step;
    for_phases(p.dest, [&](const auto& phase, std::int64_t phase_index) {
      std::int64_t points[kMaxDims];
      for (int d = 0; d < kMaxDims; ++d) {
        const std::int64_t length =
            geometry::phase_length(p.dest.size[d], phase[d], p.dest.phases[d]);
        points[d] = clamp(length - origin[d], 0, p.tile[d]);
      }
      for (std::int64_t block = 0; block < p.source_blocks(); ++block) {
        if (!one_block || phase_index == 0) {
          const Range sources = block_range(block, p.source_block, p.source.channels);
          const std::int64_t count = (groups.end - groups.begin) * (sources.end - sources.begin);
          const std::int64_t channel = groups.begin * p.source.channels + sources.begin;
          load_planes(p.source, from,
                      source + n * p.source.batch_step + channel * p.source.channel_step, count,
                      ready, source_planes);
          if constexpr (kPairs) pair_rows(p.source, from, count, source_planes);
          ready = ready > count ? ready : count;
        }
        T* plane = dest_planes;
        for (std::int64_t g = groups.begin; g < groups.end; ++g) {
          const T* const group_source = source_planes + (g - groups.begin) * group_planes;
          for (std::int64_t c = channels.begin; c < channels.end; ++c) {
            const std::int64_t channel = g * p.dest.channels + c;
            const T start = bias == nullptr ? T(0) : numeric::load(bias[channel]);
            const std::int64_t list = p.list_index(channel, phase_index, block);
            if (p.fast) {
              if constexpr (kHasFast<T>) {
                forward_fast(p, list, group_source, fast, c > channels.begin, points, start, plane,
                             ahead);
              }
            } else {
              for (std::int64_t z = 0; z < points[0]; ++z) {
                forward_slice(p.lists, list, group_source + z * slab, p.source_pitch,
                              plane + z * p.tile[1] * p.dest_pitch, p.dest_pitch, points[1],
                              points[2], p.tile[1] == 1, start, block > 0, ahead);
              }
            }
            if (store_each) {
              store_planes(p.dest, to, phase, plane, 1,
                           target + (channel - first) * p.dest.channel_step);
            } else {
              plane += p.dest_plane;
            }
          }
        }
      }
      if (!store_each) {
        const std::int64_t count = (groups.end - groups.begin) * (channels.end - channels.begin);
        store_planes(p.dest, to, phase, dest_planes, count, target);
      }
    });
  }
  return fast.check.fit();
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
