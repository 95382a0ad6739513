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

/// Calls function(offset in scratch, offset in the tensor, rows, slices) for slices, or for all of
/// them at once where each begins in the tensor behind the last row of the one before.
template <typename Function>
DCLS_HD void for_slices(const Window& w, const PlaneBox& box, const Function& function) {
  const std::int64_t rows = w.end[1] - w.begin[1];
  const std::int64_t step = rows * w.step[1] == w.step[0] ? w.end[0] - w.begin[0] : 1;
  for (std::int64_t z = w.begin[0]; z < w.end[0]; z += step) {
    function((z * box.extent[1] + w.begin[1]) * box.pitch + w.begin[2],
             w.first + z * w.step[0] + w.begin[1] * w.step[1] + w.begin[2] * w.step[2], rows, step);
  }
}

/// Writes zeros around the points of the tensor, from the end of a row of them to the next row.
template <typename T>
void zero_surroundings(const Window& w, const PlaneBox& box, T* plane) {
  const T* const end = plane + box.extent[0] * box.extent[1] * box.pitch;
  T* gap = plane;
  const auto zero_up_to = [&](const T* to) {
    for (; gap < to; ++gap) *gap = T(0);
  };
  for (std::int64_t z = w.begin[0]; z < w.end[0]; ++z) {
    T* row = plane + (z * box.extent[1] + w.begin[1]) * box.pitch;
    for (std::int64_t y = w.begin[1]; y < w.end[1]; ++y, row += box.pitch) {
      zero_up_to(row + w.begin[2]);
      gap = row + w.end[2];
    }
  }
  zero_up_to(end);
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

/// Where the lines of a transposition lie in scratch planes: `stride` apart, and further by `jump`
/// after each `inner` of them.
struct Lines {
  std::int64_t count;
  std::int64_t stride;
  std::int64_t inner;
  std::int64_t jump;
};

/// The rows of slices as lines.
DCLS_HD Lines lines_of_slices(const PlaneBox& box, std::int64_t rows, std::int64_t slices) {
  return {rows * slices, box.pitch, rows, (box.extent[1] - rows) * box.pitch};
}

/// Calls block(line, lanes, offsets) for squares of lines. The last one overlaps the one before, if
/// there are as many lines as a square has.
template <typename T, typename Block>
DCLS_HD void for_squares(const Lines& lines, const Block& block) {
  constexpr std::int64_t kSide = kLanes<T>;
  std::int64_t offsets[kSide];
  std::int64_t next = 0;
  std::int64_t rest = lines.inner;  // lines up to the next jump
  for (std::int64_t line = 0; line < lines.count; line += kSide) {
    if (line > 0 && line + kSide > lines.count) {
      line = lines.count - kSide;
      next = line * lines.stride + line / lines.inner * lines.jump;
      rest = lines.inner - line % lines.inner;
    }
    const std::int64_t lanes = lines.count < kSide ? lines.count : kSide;
    for (std::int64_t i = 0; i < lanes; ++i) {
      offsets[i] = next;
      next += lines.stride;
      if (--rest == 0) {
        next += lines.jump;
        rest = lines.inner;
      }
    }
    block(line, lanes, offsets);
  }
}

/// The value x of line c: planes[offset of c + x] = tensor[x * step + c], a square of values at a
/// time. With kPadded the planes have room for a vector behind the last of the points, which is set
/// to zero.
template <bool kPadded, typename Storage, typename T>
void load_transposed(const Storage* tensor, std::int64_t step, std::int64_t points,
                     const Lines& lines, T* planes) {
  constexpr std::int64_t kSide = kLanes<T>;
  for_squares<T>(lines, [&](std::int64_t c, std::int64_t lanes, const std::int64_t* offsets) {
    if (!kPadded && points < kSide) {
      for (std::int64_t x = 0; x < points; ++x) {
        for (std::int64_t i = 0; i < lanes; ++i) {
          planes[offsets[i] + x] = numeric::load(tensor[x * step + c + i]);
        }
      }
      return;
    }
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
      T* const to = planes + x;
      if (lanes == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i) store_vector(to + offsets[i], rows[i]);
      } else {
        for (std::int64_t i = 0; i < lanes; ++i) store_vector(to + offsets[i], rows[i]);
      }
    }
  });
}

/// The other way: tensor[x * step + c] = planes[offset of c + x]. With kPadded there may be a
/// vector read behind the last of the points.
template <bool kPadded, typename Storage, typename T>
void store_transposed(const T* planes, const Lines& lines, std::int64_t points, Storage* tensor,
                      std::int64_t step) {
  constexpr std::int64_t kSide = kLanes<T>;
  for_squares<T>(lines, [&](std::int64_t c, std::int64_t lanes, const std::int64_t* offsets) {
    if (!kPadded && points < kSide) {
      for (std::int64_t x = 0; x < points; ++x) {
        for (std::int64_t i = 0; i < lanes; ++i) {
          numeric::store(tensor + x * step + c + i, planes[offsets[i] + x]);
        }
      }
      return;
    }
    for (std::int64_t x = 0; x < points; x += kSide) {
      if (!kPadded && x + kSide > points) x = points - kSide;
      const std::int64_t count = points - x < kSide ? points - x : kSide;
      const T* const from = planes + x;
      Vector<T> rows[kSide];
      if (lanes == kSide) {
#pragma GCC unroll 16
        for (std::int64_t i = 0; i < kSide; ++i) rows[i] = load_vector(from + offsets[i]);
      } else {
        for (std::int64_t i = 0; i < kSide; ++i) {
          rows[i] = i < lanes ? load_vector(from + offsets[i]) : Vector<T>{};
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
  });
}

/// Whether the rows of a box have room for whole vectors, where they have less than one.
template <typename T>
DCLS_HD bool has_room(const Window& w, const PlaneBox& box) {
  return w.end[2] - w.begin[2] < kLanes<T> && w.begin[2] + kLanes<T> <= box.pitch;
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
      const Lines lines{channels, stride, channels, 0};
      const bool room = has_room<T>(w, box);
      for_rows(w, box, [&](std::int64_t to, std::int64_t from) {
        if (room) return load_transposed<true>(tensor + from, w.step[2], points, lines, first + to);
        load_transposed<false>(tensor + from, w.step[2], points, lines, first + to);
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
        for_slices(w, box, [&](std::int64_t to, std::int64_t from, auto rows, auto slices) {
          load_transposed<true>(source + from, w.step[2], points,
                                lines_of_slices(box, rows, slices), to_plane + to);
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
    const Lines lines{channels, box.plane, channels, 0};
    const bool room = has_room<T>(w, box);
    for_rows(w, box, [&](std::int64_t from, std::int64_t to) {
      if (room) return store_transposed<true>(planes + from, lines, points, tensor + to, w.step[2]);
      store_transposed<false>(planes + from, lines, points, tensor + to, w.step[2]);
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
      for_slices(w, box, [&](std::int64_t from, std::int64_t to, auto rows, auto slices) {
        store_transposed<true>(from_plane + from, lines_of_slices(box, rows, slices), points,
                               target + to, w.step[2]);
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
