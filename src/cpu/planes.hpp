#pragma once

// Tensors to padded scratch planes and back. Only for files compiled per instruction set.

#include <algorithm>
#include <cstdint>

#include "common/conv_geometry.hpp"
#include "cpu/conv.hpp"
#include "cpu/rows.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// A box of points of each phase plane of a tensor, and the scratch planes that hold it:
/// (channel, phases, extent[0], extent[1], pitch).
struct PlaneBox {
  std::int64_t origin[kMaxDims];  ///< point of a phase plane that comes first
  std::int64_t extent[kMaxDims];
  std::int64_t lo[kMaxDims];  ///< points outside [lo, hi) are zero
  std::int64_t hi[kMaxDims];
  std::int64_t pitch;
  std::int64_t plane;
};

DCLS_HD std::int64_t clamp(std::int64_t value, std::int64_t lo, std::int64_t hi) {
  return value < lo ? lo : value > hi ? hi : value;
}

template <typename T>
DCLS_HD void zero_row(T* row, std::int64_t begin, std::int64_t end) {
  for (std::int64_t x = begin; x < end; ++x) row[x] = T(0);
}

/// Calls function(offset in scratch, offset in the tensor, points) for the rows of one phase that
/// hold points of the tensor, and zero(begin, end) for what surrounds them.
template <typename Function, typename Zero>
DCLS_HD void for_rows(const Side& side, const PlaneBox& box, const std::int64_t (&phase)[kMaxDims],
                      const Function& function, const Zero& zero) {
  std::int64_t begin[kMaxDims], end[kMaxDims];  // in scratch
  for (int d = 0; d < kMaxDims; ++d) {
    const std::int64_t length = geometry::phase_length(side.size[d], phase[d], side.phases[d]);
    const std::int64_t lo = box.lo[d] > 0 ? box.lo[d] : 0;
    const std::int64_t hi = box.hi[d] < length ? box.hi[d] : length;
    begin[d] = clamp(lo - box.origin[d], 0, box.extent[d]);
    end[d] = clamp(hi - box.origin[d], begin[d], box.extent[d]);
  }
  const std::int64_t points = end[2] - begin[2];
  for (std::int64_t z = 0; z < box.extent[0]; ++z) {
    const bool inside = z >= begin[0] && z < end[0] && points > 0;
    for (std::int64_t y = 0; y < box.extent[1]; ++y) {
      const std::int64_t row = (z * box.extent[1] + y) * box.pitch;
      if (!inside || y < begin[1] || y >= end[1]) {
        zero(row, row + box.pitch);
        continue;
      }
      const std::int64_t at[kMaxDims] = {z, y, begin[2]};
      std::int64_t from = 0;
      for (int d = 0; d < kMaxDims; ++d) {
        from += ((box.origin[d] + at[d]) * side.phases[d] + phase[d]) * side.step[d];
      }
      zero(row, row + begin[2]);
      function(row + begin[2], from, points);
      zero(row + end[2], row + box.pitch);
    }
  }
}

/// Calls function(phase, its number) for all phases of a side.
template <typename Function>
DCLS_HD void for_phases(const Side& side, const Function& function) {
  std::int64_t index = 0;
  std::int64_t phase[kMaxDims];
  for (phase[0] = 0; phase[0] < side.phases[0]; ++phase[0]) {
    for (phase[1] = 0; phase[1] < side.phases[1]; ++phase[1]) {
      for (phase[2] = 0; phase[2] < side.phases[2]; ++phase[2]) function(phase, index++);
    }
  }
}

/// Copies `channels` channels, the first at `tensor`, to scratch. The zeros around the points are
/// written only from channel `ready` on: for the others an earlier copy of this box wrote them.
template <typename Storage, typename T>
void load_planes(const Side& side, const PlaneBox& box, const Storage* tensor,
                 std::int64_t channels, std::int64_t ready, T* planes) {
  const std::int64_t stride = side.phase_count() * box.plane;  // from channel to channel
  const std::int64_t step = side.step[2] * side.phases[2];
  for_phases(side, [&](const auto& phase, std::int64_t index) {
    T* const first = planes + index * box.plane;
    const auto zero_from = [&](std::int64_t channel) {
      return [=](std::int64_t begin, std::int64_t end) {
        for (std::int64_t c = channel; c < channels; ++c) zero_row(first + c * stride, begin, end);
      };
    };
    if (side.channel_step == 1 && channels > 1) {  // channels last: a cache line at a time
      for_rows(
          side, box, phase,
          [&](std::int64_t to, std::int64_t from, std::int64_t points) {
            const Storage* source = tensor + from;
            for (std::int64_t x = 0; x < points; ++x, source += step) {
              T* target = first + to + x;
              for (std::int64_t c = 0; c < channels; ++c, target += stride) {
                *target = numeric::load(source[c]);
              }
            }
          },
          zero_from(ready));
      return;
    }
    for (std::int64_t c = 0; c < channels; ++c) {
      T* const to_plane = first + c * stride;
      const Storage* const source = tensor + c * side.channel_step;
      for_rows(
          side, box, phase,
          [&](std::int64_t to, std::int64_t from, std::int64_t points) {
            if (step == 1) return load_row(source + from, to_plane + to, points);
            for (std::int64_t x = 0; x < points; ++x) {
              to_plane[to + x] = numeric::load(source[from + x * step]);
            }
          },
          [&](std::int64_t begin, std::int64_t end) {
            if (c >= ready) zero_row(to_plane, begin, end);
          });
    }
  });
}

/// Copies one phase of `channels` channels from scratch to the tensor.
template <typename Storage, typename T>
void store_planes(const Side& side, const PlaneBox& box, const std::int64_t (&phase)[kMaxDims],
                  const T* planes, std::int64_t channels, Storage* tensor) {
  const std::int64_t step = side.step[2] * side.phases[2];
  const auto nothing = [](std::int64_t, std::int64_t) {};
  if (side.channel_step == 1 && channels > 1) {
    for_rows(
        side, box, phase,
        [&](std::int64_t from, std::int64_t to, std::int64_t points) {
          Storage* target = tensor + to;
          for (std::int64_t x = 0; x < points; ++x, target += step) {
            const T* source = planes + from + x;
            for (std::int64_t c = 0; c < channels; ++c, source += box.plane) {
              numeric::store(target + c, *source);
            }
          }
        },
        nothing);
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* const from_plane = planes + c * box.plane;
    Storage* const target = tensor + c * side.channel_step;
    for_rows(
        side, box, phase,
        [&](std::int64_t from, std::int64_t to, std::int64_t points) {
          if (step == 1) return store_row(from_plane + from, target + to, points);
          for (std::int64_t x = 0; x < points; ++x) {
            numeric::store(target + to + x * step, from_plane[from + x]);
          }
        },
        nothing);
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
