#pragma once

// Tensors to padded scratch planes and back. Only for files compiled per instruction set.

#include <cstdint>

#include "core/conv_geometry.hpp"
#include "cpu/conv/conv_kernels.hpp"
#include "cpu/simd/rows.hpp"

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

/// Where one phase of a tensor and its scratch plane meet.
struct Window {
  std::int64_t begin[kMaxDims];  ///< points of the scratch plane that lie in the tensor
  std::int64_t end[kMaxDims];
  std::int64_t first;           ///< offset in the tensor of the scratch plane's origin
  std::int64_t step[kMaxDims];  ///< values of the tensor from one point to the next
};

DCLS_HD Window make_window(const Side& side, const PlaneBox& box,
                           const std::int64_t (&phase)[kMaxDims]) {
  Window w;
  w.first = 0;
  for (int d = 0; d < kMaxDims; ++d) {
    const std::int64_t length = geometry::phase_length(side.size[d], phase[d], side.phases[d]);
    const std::int64_t lo = box.lo[d] > 0 ? box.lo[d] : 0;
    const std::int64_t hi = box.hi[d] < length ? box.hi[d] : length;
    w.begin[d] = clamp(lo - box.origin[d], 0, box.extent[d]);
    w.end[d] = clamp(hi - box.origin[d], w.begin[d], box.extent[d]);
    w.step[d] = side.phases[d] * side.step[d];
    w.first += (box.origin[d] * side.phases[d] + phase[d]) * side.step[d];
  }
  return w;
}

/// Calls function(offset in scratch, offset in the tensor) for the first points of the rows that
/// hold points of the tensor.
template <typename Function>
DCLS_HD void for_rows(const Window& w, const PlaneBox& box, const Function& function) {
  for (std::int64_t z = w.begin[0]; z < w.end[0]; ++z) {
    std::int64_t scratch = (z * box.extent[1] + w.begin[1]) * box.pitch + w.begin[2];
    std::int64_t tensor = w.first + z * w.step[0] + w.begin[1] * w.step[1] + w.begin[2] * w.step[2];
    for (std::int64_t y = w.begin[1]; y < w.end[1]; ++y) {
      function(scratch, tensor);
      scratch += box.pitch;
      tensor += w.step[1];
    }
  }
}

/// Calls function(offset in scratch, offset in the tensor, rows) for the first points of the
/// slices.
template <typename Function>
DCLS_HD void for_slices(const Window& w, const PlaneBox& box, const Function& function) {
  for (std::int64_t z = w.begin[0]; z < w.end[0]; ++z) {
    function((z * box.extent[1] + w.begin[1]) * box.pitch + w.begin[2],
             w.first + z * w.step[0] + w.begin[1] * w.step[1] + w.begin[2] * w.step[2],
             w.end[1] - w.begin[1]);
  }
}

/// Writes zeros around the points of the tensor.
template <typename T>
void zero_surroundings(const Window& w, const PlaneBox& box, T* plane) {
  for (std::int64_t z = 0; z < box.extent[0]; ++z) {
    for (std::int64_t y = 0; y < box.extent[1]; ++y, plane += box.pitch) {
      const bool inside = z >= w.begin[0] && z < w.end[0] && y >= w.begin[1] && y < w.end[1];
      const std::int64_t begin = inside ? w.begin[2] : box.pitch;
      for (std::int64_t x = 0; x < begin; ++x) plane[x] = T(0);
      for (std::int64_t x = inside ? w.end[2] : box.pitch; x < box.pitch; ++x) plane[x] = T(0);
    }
  }
}

/// Calls function(phase, its number) for the phases of a side that are used.
template <typename Function>
DCLS_HD void for_phases(const Side& side, const Function& function) {
  std::int64_t index = 0;
  for (std::int64_t z = 0; z < side.used[0]; ++z) {
    for (std::int64_t y = 0; y < side.used[1]; ++y) {
      for (std::int64_t x = 0; x < side.used[2]; ++x) {
        const std::int64_t phase[kMaxDims] = {side.phase[0][z], side.phase[1][y], side.phase[2][x]};
        function(phase, index++);
      }
    }
  }
}

/// planes[c * stride + x] = tensor[x * step + c], a square of values at a time. With kPadded the
/// planes have room for a vector behind the last of the points, which is set to zero.
template <bool kPadded, typename Storage, typename T>
void load_transposed(const Storage* tensor, std::int64_t step, std::int64_t points,
                     std::int64_t channels, T* planes, std::int64_t stride) {
  constexpr std::int64_t kSide = kLanes<T>;
  if (!kPadded && points < kSide) {
    for (std::int64_t x = 0; x < points; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) {
        planes[c * stride + x] = numeric::load(tensor[x * step + c]);
      }
    }
    return;
  }
  for (std::int64_t c = 0; c < channels; c += kSide) {
    const std::int64_t lanes = channels - c < kSide ? channels - c : kSide;
    for (std::int64_t x = 0; x < points; x += kSide) {
      if (!kPadded && x + kSide > points) x = points - kSide;  // some of them once more
      const std::int64_t count = points - x < kSide ? points - x : kSide;
      const Storage* from = tensor + x * step + c;
      Vector<T> rows[kSide];
      if (lanes == kSide && count == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i, from += step) rows[i] = load_lanes(from);
      } else {
        for (std::int64_t i = 0; i < kSide; ++i, from += step) {
          rows[i] = i < count ? load_some(from, lanes) : Vector<T>{};
        }
      }
      transpose<T>(rows);
      T* to = planes + c * stride + x;
      if (lanes == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i, to += stride) store_vector(to, rows[i]);
      } else {
        for (std::int64_t i = 0; i < lanes; ++i, to += stride) store_vector(to, rows[i]);
      }
    }
  }
}

/// tensor[x * step + c] = planes[c * stride + x]. With kPadded there may be a vector read behind
/// the last of the points.
template <bool kPadded, typename Storage, typename T>
void store_transposed(const T* planes, std::int64_t stride, std::int64_t points,
                      std::int64_t channels, Storage* tensor, std::int64_t step) {
  constexpr std::int64_t kSide = kLanes<T>;
  if (!kPadded && points < kSide) {
    for (std::int64_t x = 0; x < points; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) {
        numeric::store(tensor + x * step + c, planes[c * stride + x]);
      }
    }
    return;
  }
  for (std::int64_t c = 0; c < channels; c += kSide) {
    const std::int64_t lanes = channels - c < kSide ? channels - c : kSide;
    for (std::int64_t x = 0; x < points; x += kSide) {
      if (!kPadded && x + kSide > points) x = points - kSide;
      const std::int64_t count = points - x < kSide ? points - x : kSide;
      const T* from = planes + c * stride + x;
      Vector<T> rows[kSide];
      if (lanes == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i, from += stride) rows[i] = load_vector(from);
      } else {
        for (std::int64_t i = 0; i < kSide; ++i, from += stride) {
          rows[i] = i < lanes ? load_vector(from) : Vector<T>{};
        }
      }
      transpose<T>(rows);
      Storage* to = tensor + x * step + c;
      if (lanes == kSide && count == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i, to += step) store_lanes(to, rows[i]);
      } else {
        for (std::int64_t i = 0; i < count; ++i, to += step) store_some(to, rows[i], lanes);
      }
    }
  }
}

/// Copies `channels` channels, the first at `tensor`, to scratch. The zeros around the points are
/// written only from channel `ready` on: for the others an earlier copy of this box wrote them.
template <typename Storage, typename T>
void load_planes(const Side& side, const PlaneBox& box, const Storage* tensor,
                 std::int64_t channels, std::int64_t ready, T* planes) {
  const std::int64_t stride = side.phase_count() * box.plane;  // from channel to channel
  for_phases(side, [&](const auto& phase, std::int64_t index) {
    const Window w = make_window(side, box, phase);
    const std::int64_t points = w.end[2] - w.begin[2];
    T* const first = planes + index * box.plane;
    for (std::int64_t c = ready; c < channels; ++c) zero_surroundings(w, box, first + c * stride);
    if (side.channel_step == 1 && channels > 1) {  // channels last
      for_rows(w, box, [&](std::int64_t to, std::int64_t from) {
        load_transposed<false>(tensor + from, w.step[2], points, channels, first + to, stride);
      });
      return;
    }
    for (std::int64_t c = 0; c < channels; ++c) {
      T* const to_plane = first + c * stride;
      const Storage* const source = tensor + c * side.channel_step;
      if (w.step[2] == 1) {
        for_rows(w, box, [&](std::int64_t to, std::int64_t from) {
          load_row(source + from, to_plane + to, points);
        });
        continue;
      }
      if (w.step[1] == 1) {  // the batch as columns: the rows' first points are neighbours
        for_slices(w, box, [&](std::int64_t to, std::int64_t from, std::int64_t rows) {
          load_transposed<true>(source + from, w.step[2], points, rows, to_plane + to, box.pitch);
        });
        continue;
      }
      for_rows(w, box, [&](std::int64_t to, std::int64_t from) {
        for (std::int64_t x = 0; x < points; ++x) {
          to_plane[to + x] = numeric::load(source[from + x * w.step[2]]);
        }
      });
    }
  });
}

/// Copies one phase of `channels` channels from scratch to the tensor.
template <typename Storage, typename T>
void store_planes(const Side& side, const PlaneBox& box, const std::int64_t (&phase)[kMaxDims],
                  const T* planes, std::int64_t channels, Storage* tensor) {
  const Window w = make_window(side, box, phase);
  const std::int64_t points = w.end[2] - w.begin[2];
  if (side.channel_step == 1 && channels > 1) {
    for_rows(w, box, [&](std::int64_t from, std::int64_t to) {
      store_transposed<false>(planes + from, box.plane, points, channels, tensor + to, w.step[2]);
    });
    return;
  }
  for (std::int64_t c = 0; c < channels; ++c) {
    const T* const from_plane = planes + c * box.plane;
    Storage* const target = tensor + c * side.channel_step;
    if (w.step[2] == 1) {
      for_rows(w, box, [&](std::int64_t from, std::int64_t to) {
        store_row(from_plane + from, target + to, points);
      });
      continue;
    }
    if (w.step[1] == 1) {
      for_slices(w, box, [&](std::int64_t from, std::int64_t to, std::int64_t rows) {
        store_transposed<true>(from_plane + from, box.pitch, points, rows, target + to, w.step[2]);
      });
      continue;
    }
    for_rows(w, box, [&](std::int64_t from, std::int64_t to) {
      for (std::int64_t x = 0; x < points; ++x) {
        numeric::store(target + to + x * w.step[2], from_plane[from + x]);
      }
    });
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
