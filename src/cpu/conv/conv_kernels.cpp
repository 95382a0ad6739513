// The direct convolution on the CPU, compiled once per instruction set.

#include "cpu/conv/conv_kernels.hpp"

#include <cstdint>

#include "core/dispatch.hpp"
#include "cpu/conv/conv_mark.hpp"
#include "cpu/conv/conv_patch.hpp"
#include "cpu/simd/planes.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

/// The part of a block-wise range that a block has.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};
DCLS_HD Range block_range(std::int64_t block, std::int64_t size, std::int64_t count) {
  return {block * size, (block + 1) * size < count ? (block + 1) * size : count};
}

/// The first points of a tile along each axis.
DCLS_HD void tile_origin(const ConvPlan& p, std::int64_t tile, std::int64_t (&origin)[kMaxDims]) {
  for (int d = kMaxDims - 1; d >= 0; --d) {
    origin[d] = tile % p.tiles[d] * p.tile[d];
    tile /= p.tiles[d];
  }
}

DCLS_HD PlaneBox source_box(const ConvPlan& p, const std::int64_t (&origin)[kMaxDims]) {
  PlaneBox box;
  for (int d = 0; d < kMaxDims; ++d) {
    box.origin[d] = origin[d] + p.shift_lo[d];
    box.extent[d] = p.source_extent[d];
    box.lo[d] = 0;
    box.hi[d] = p.source.size[d];
  }
  box.pitch = p.source_pitch;
  box.plane = p.source_plane;
  return box;
}

/// A tile with `margin` rows of zeros before and after.
DCLS_HD PlaneBox dest_box(const ConvPlan& p, const std::int64_t (&origin)[kMaxDims]) {
  PlaneBox box;
  for (int d = 0; d < kMaxDims; ++d) {
    const std::int64_t margin = d == 1 ? p.dest_margin : 0;
    box.origin[d] = origin[d] - margin;
    box.extent[d] = p.tile[d] + 2 * margin;
    box.lo[d] = origin[d];
    box.hi[d] = origin[d] + p.tile[d];
  }
  box.pitch = p.dest_pitch;
  box.plane = p.dest_plane;
  return box;
}

template <typename Storage>
void correlate_units(const ConvPlan& p, const Storage* source, const Storage* bias, Storage* dest,
                     std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const std::int64_t group_planes = p.source_block * p.source.phase_count() * p.source_plane;
  T* const source_planes = static_cast<T*>(scratch);
  T* const dest_planes = source_planes + p.group_block * group_planes;
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
    if (tile != zeroed_tile) ready = 0;
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
          ready = ready > count ? ready : count;
        }
        T* plane = dest_planes;
        for (std::int64_t g = groups.begin; g < groups.end; ++g) {
          const T* const group_source = source_planes + (g - groups.begin) * group_planes;
          for (std::int64_t c = channels.begin; c < channels.end; ++c) {
            const std::int64_t channel = g * p.dest.channels + c;
            const T start = bias == nullptr ? T(0) : numeric::load(bias[channel]);
            for (std::int64_t z = 0; z < points[0]; ++z) {
              correlate_slice(p.lists, p.list_index(channel, phase_index, block),
                              group_source + z * slab, p.source_pitch,
                              plane + z * p.tile[1] * p.dest_pitch, p.dest_pitch, points[1],
                              points[2], p.tile[1] == 1, start, block > 0);
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

/// Where a contraction reads: the planes of a slice and the rows [begin, end) of it.
template <typename T>
struct Slice {
  const T* source;
  std::int64_t source_pitch;
  const T* dest;
  std::int64_t dest_pitch;
  std::int64_t begin;
  std::int64_t end;
  bool last;  ///< whether the rows behind `end`, zeros in dest, are to be taken too
  std::int64_t vectors;
};

/// As many runs at once as the registers hold sums of, then half as many, and so on.
template <int kLength, int kRuns, typename T>
DCLS_HD void contract_some(const Slice<T>& s, const CellRun*& runs, std::int64_t& count, T*& sums) {
  const std::int64_t end = s.last ? s.end + kLength - 1 : s.end;
  for (; count >= kRuns; count -= kRuns) {
    contract_runs<kLength, kRuns, T>(runs, s.source, s.source_pitch, s.dest, s.dest_pitch, s.begin,
                                     end, s.vectors, sums);
    runs += kRuns;
    sums += kRuns * kLength * kLanes<T>;
  }
  if constexpr (kRuns > 1) contract_some<kLength, kRuns / 2>(s, runs, count, sums);
}

/// sums += the contraction of one slice of a tile with the cells of a list; returns the end of the
/// list's sums.
template <typename T>
DCLS_HD T* contract_slice(const RunLists& lists, std::int64_t list, Slice<T> s, std::int64_t rows,
                          T* sums) {
  // Rows of which source and destination stay in the first-level cache.
  constexpr std::int64_t kBandBytes = 20 << 10;
  const std::int64_t row_bytes =
      (s.source_pitch + s.dest_pitch) * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t fitting = kBandBytes / row_bytes;
  const std::int64_t bands = fitting >= rows ? 1
                             : fitting > 8   ? (rows - 1) / fitting + 1
                                             : (rows - 1) / 8 + 1;
  T* next = sums;
  for (std::int64_t band = 0; band < bands; ++band) {
    s.begin = rows * band / bands;
    s.end = rows * (band + 1) / bands;
    s.last = band == bands - 1;
    next = sums;
    for_runs(lists, list, [&](auto length, const CellRun* runs, std::int64_t count) {
      constexpr int kLength = length();
      constexpr int kSums = kRegisters == 32 ? 16 : 8;
      constexpr int kRuns = kLength == 1 ? 8 : kLength == 2 ? kSums / 2 : kSums / 4;
      contract_some<kLength, kRuns>(s, runs, count, next);
    });
  }
  return next;
}

template <typename Storage>
void contract_units(const ConvPlan& p, const Storage* source, const Storage* dest,
                    Storage* grad_kernel, Compute<Storage>* partial, std::int64_t cells,
                    std::int64_t begin, std::int64_t end, void* scratch) {
  using T = Compute<Storage>;
  const std::int64_t group_planes = p.source_block * p.source.phase_count() * p.source_plane;
  T* const sums = static_cast<T*>(scratch);
  T* const source_planes = sums + p.unit_cells * kLanes<T>;
  T* const dest_planes = source_planes + p.group_block * group_planes;
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
      zeroed_tile = tile;
      load_planes(p.source, from,
                  source + n * p.source.batch_step + source_first * p.source.channel_step,
                  source_count, ready, source_planes);
      load_planes(p.dest, at, dest + n * p.dest.batch_step + dest_first * p.dest.channel_step,
                  dest_count, ready, dest_planes);
      T* next = sums;
      for_lists([&](std::int64_t list, std::int64_t group, std::int64_t slot) {
        T* list_end = next;
        for (std::int64_t z = 0; z < points[0]; ++z) {
          const T* const from_slice = source_planes + group * group_planes + z * source_slab;
          const T* const at_slice =
              dest_planes + slot * p.dest_plane + z * dest_slab + p.dest_margin * p.dest_pitch;
          // One row: its vectors are the rows.
          const Slice<T> slice =
              lines ? Slice<T>{from_slice, kLanes<T>, at_slice, kLanes<T>, 0, 0, false, 1}
                    : Slice<T>{from_slice, p.source_pitch, at_slice, p.dest_pitch, 0,
                               0,          false,          vectors};
          list_end = contract_slice(p.lists, list, slice, lines ? vectors : points[1], next);
        }
        next = list_end;
      });
    }
    for (std::int64_t i = 0; i < p.unit_cells; i += kLanes<T>) {
      store_vector(sums + i, sum_rows<T>(sums + i * kLanes<T>));
    }
    const T* sum = sums;
    for_lists([&](std::int64_t list, std::int64_t, std::int64_t) {
      for_runs(p.lists, list, [&](auto length, const CellRun* runs, std::int64_t count) {
        for (std::int64_t k = 0; k < count; ++k) {
          for (int j = 0; j < length(); ++j, ++sum) {
            const std::int64_t cell = runs[k].cell + j * p.cell_step;
            if (partial == nullptr) {
              numeric::store(grad_kernel + cell, *sum);
            } else {
              partial[split * cells + cell] = *sum;
            }
          }
        }
      });
    });
  }
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

void correlate(const ConvPlan& plan, const void* source, const void* bias, void* dest,
               std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    correlate_units(plan, static_cast<const Storage*>(source), static_cast<const Storage*>(bias),
                    static_cast<Storage*>(dest), begin, end, scratch);
  });
}

void contract(const ConvPlan& plan, const void* source, const void* dest, void* grad_kernel,
              void* partial, std::int64_t cells, std::int64_t begin, std::int64_t end,
              void* scratch) {
  const FlushDenormals flush;
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    contract_units(plan, static_cast<const Storage*>(source), static_cast<const Storage*>(dest),
                   static_cast<Storage*>(grad_kernel), static_cast<Compute<Storage>*>(partial),
                   cells, begin, end, scratch);
  });
}

void reduce(const ConvPlan& plan, const void* partial, void* grad_kernel, std::int64_t cells,
            std::int64_t begin, std::int64_t end) {
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    reduce_cells(plan, static_cast<const Compute<Storage>*>(partial),
                 static_cast<Storage*>(grad_kernel), cells, begin, end);
  });
}

}  // namespace

const ConvKernels conv_kernels = {&correlate, &contract, &reduce, &mark_weights, &mark_support};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
