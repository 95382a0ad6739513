#pragma once

// Tiles on their way between a tensor and shared memory. Threads move pairs of values that are
// neighbours in the tensor, with one instruction where the pair is aligned, and have several of
// them in flight.

#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/conv/conv_tile.cuh"

namespace dcls::cuda {

/// Pairs that a thread loads before it stores the first one.
inline constexpr int kInFlight = 3;

template <typename Storage>
struct alignas(2 * sizeof(Storage)) Pair {
  Storage value[2];
};

/// One row of a plane, or one plane of a line.
struct TileLine {
  std::int64_t base;  ///< offset in the tensor of point 0
  int place;          ///< of point 0 in shared memory
  int slot;
  int shift;      ///< 1 if pairs begin at odd points
  int low, high;  ///< the points in the tensor
};

/// A pair, or one point. Bit i of `wanted` and `inside` is for its i-th value.
struct TileItem {
  std::int64_t offset;
  int place, slot;
  unsigned wanted;  ///< is in the tile
  unsigned inside;  ///< and in the tensor
  bool aligned;
};

/// How the threads of a block share a tile out. Pairs lie along the channels where those are
/// innermost and the block has several; along the line if its points are neighbours; else there
/// are single points.
template <bool kLine>
class TileWalk {
 public:
  int lines, first_line, line_step;  ///< of this thread
  int width, first, step;            ///< items of a line, and this thread's
  int pair_step;                     ///< in shared memory

  template <typename Storage>
  __device__ __forceinline__ TileWalk(const Tile& tile, const std::int64_t* places,
                                      const Storage* begin)
      : tile_(tile), places_(places), axis_(kLine ? tile.y : tile.x) {
    length_ = kLine ? tile.rows : tile.columns;
    rows_ = kLine ? 1 : tile.rows;
    point_step_ = axis_.step * axis_.pitch;
    origin_ = axis_.offset(0);
    odd_ = static_cast<int>(reinterpret_cast<std::uintptr_t>(begin) / sizeof(Storage) & 1u);
    across_ = tile.slots > 1 && tile.channel_pitch == 1;
    along_ = !across_ && point_step_ == 1;
    pair_bits_ = across_ ? highest_bit(static_cast<unsigned>(tile.slots)) - 1 : 0;
    pair_step = across_ ? tile.slot_size : 1;
    lines = tile.planes * rows_ * (across_ ? 1 : tile.slots);
    width = across_ ? length_ << pair_bits_ : along_ ? length_ / 2 + 1 : length_;
    // Few threads to a line leave few of them idle at its end, but all should have one.
    const int threads = static_cast<int>(blockDim.x);
    int bits = 3;
    while (bits < 5 && (width > kInFlight << bits)) ++bits;
    while (lines << bits < threads && 2 << bits <= threads) ++bits;
    const int thread = static_cast<int>(threadIdx.x);
    step = 1 << bits;
    first = thread & (step - 1);
    line_step = threads >> bits;
    first_line = thread >> bits < line_step ? thread >> bits : lines;
  }

  __device__ __forceinline__ TileLine line(int n) const {
    const int slot_lines = tile_.planes * rows_;
    TileLine line;
    line.slot = across_ || tile_.slots == 1 ? 0 : n / slot_lines;
    const int own = n - line.slot * slot_lines;
    const int plane = kLine ? own : own / rows_;
    line.place = line.slot * tile_.slot_size + own * length_;
    line.base = places_[plane] + origin_ + line.slot * tile_.channel_pitch;
    bool exists = places_[plane] >= 0 && line.slot < tile_.valid_slots;
    if constexpr (!kLine) {
      const int y = own - plane * rows_;
      exists = exists && tile_.y.has(y);
      line.base += tile_.y.offset(y);
    }
    line.low = axis_.low(length_);
    line.high = exists ? axis_.high(length_) : 0;
    line.shift = along_ ? static_cast<int>((line.base + odd_) & 1) : 0;
    return line;
  }

  /// Item i of a line; none of it is wanted behind the end.
  __device__ __forceinline__ TileItem item(const TileLine& line, int i) const {
    const auto in_tile = [&](int point) { return point >= 0 && point < length_ ? 1u : 0u; };
    const auto in_tensor = [&](int point) {
      return point >= line.low && point < line.high ? 1u : 0u;
    };
    TileItem item;
    int point = i;
    item.slot = line.slot;
    if (across_) {
      point = i >> pair_bits_;
      item.slot = 2 * (i & ((1 << pair_bits_) - 1));
      item.wanted = in_tile(point) * 3u;
      item.inside = in_tensor(point) * ((item.slot < tile_.valid_slots ? 1u : 0u) |
                                        (item.slot + 1 < tile_.valid_slots ? 2u : 0u));
    } else if (along_) {
      point = 2 * i - line.shift;
      item.wanted = in_tile(point) | in_tile(point + 1) << 1;
      item.inside = in_tensor(point) | in_tensor(point + 1) << 1;
    } else {
      item.wanted = in_tile(point);
      item.inside = in_tensor(point);
    }
    item.offset = line.base + point * point_step_ + (across_ ? item.slot : 0);
    item.place = line.place + point + (across_ ? item.slot * tile_.slot_size : 0);
    item.aligned = along_ || ((item.offset + odd_) & 1) == 0;
    return item;
  }

 private:
  const Tile& tile_;
  const std::int64_t* places_;
  const TileAxis& axis_;
  std::int64_t point_step_, origin_;
  int length_, rows_;
  int odd_;  ///< whether the tensor begins at the second value of a pair
  bool across_, along_;
  int pair_bits_;  ///< log2 of the pairs of channels
};

/// Loads a tile, with zeros outside the tensor. `places` are the offsets of the planes; -1 for
/// none.
template <bool kLine, typename Storage, typename T>
__device__ __forceinline__ void load_tile(const Tile& tile, const std::int64_t* places,
                                          const Storage* begin, T* shared) {
  const TileWalk<kLine> walk(tile, places, begin);
  for (int n = walk.first_line; n < walk.lines; n += walk.line_step) {
    const TileLine line = walk.line(n);
    for (int i = walk.first; i < walk.width; i += walk.step * kInFlight) {
      TileItem item[kInFlight];
      Pair<Storage> pair[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        item[k] = walk.item(line, i + k * walk.step);
        const Storage* const from = begin + item[k].offset;
        if (item[k].inside == 3u && item[k].aligned) {
          pair[k] = *reinterpret_cast<const Pair<Storage>*>(from);
        } else {
          if ((item[k].inside & 1u) != 0) pair[k].value[0] = from[0];
          if ((item[k].inside & 2u) != 0) pair[k].value[1] = from[1];
        }
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          if ((item[k].wanted >> side & 1u) == 0) continue;
          shared[item[k].place + side * walk.pair_step] =
              (item[k].inside >> side & 1u) != 0 ? numeric::load(pair[k].value[side]) : T(0);
        }
      }
    }
  }
}

/// Stores the part of a tile that is in the tensor, plus bias(slot).
template <bool kLine, typename Storage, typename T, typename Bias>
__device__ __forceinline__ void store_tile(const Tile& tile, const std::int64_t* places,
                                           const T* shared, Storage* begin, Bias&& bias) {
  const TileWalk<kLine> walk(tile, places, begin);
  const int slot_step = tile.slots > 1 && tile.channel_pitch == 1 ? 1 : 0;
  for (int n = walk.first_line; n < walk.lines; n += walk.line_step) {
    const TileLine line = walk.line(n);
    for (int i = walk.first; i < walk.width; i += walk.step) {
      const TileItem item = walk.item(line, i);
      Pair<Storage> pair;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        if ((item.inside >> side & 1u) == 0) continue;
        numeric::store(&pair.value[side], shared[item.place + side * walk.pair_step] +
                                              bias(item.slot + side * slot_step));
      }
      Storage* const to = begin + item.offset;
      if (item.inside == 3u && item.aligned) {
        *reinterpret_cast<Pair<Storage>*>(to) = pair;
      } else {
        if ((item.inside & 1u) != 0) to[0] = pair.value[0];
        if ((item.inside & 2u) != 0) to[1] = pair.value[1];
      }
    }
  }
}

}  // namespace dcls::cuda
