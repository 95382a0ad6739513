#pragma once

// Units of work of the direct convolution: the boxes of points that a tile reads and writes. Only
// for files compiled per instruction set.

#include <cstdint>

#include "cpu/conv/conv_kernels.hpp"
#include "cpu/simd/planes.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int kRegisters = 32;
#else
inline constexpr int kRegisters = 16;
#endif

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

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
