#pragma once

// Pairs of bfloat16 values in the place of float32 ones, for processors whose instruction
// multiplies two pairs and adds both products to a float32 sum (VDPBF16PS). Only for files compiled
// per instruction set.
//
// A lane of a scratch plane then holds a column's values of two rows: its own in the lower half,
// and that of the next row in the upper one. So a load brings what two neighbouring cells of a run
// read, and all the rest, the lists among it, is as for float32. Both products belong to cells that
// are there: one with a zero would make NaN of infinite values that no cell reads.

#include <cstdint>
#include <cstring>

#include "cpu/conv/conv_units.hpp"
#include "cpu/simd/planes.hpp"
#include "cpu/simd/rows.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

#if defined(__AVX512BF16__)
inline constexpr bool kPairs = true;

/// sum + a pair's lower values multiplied + its upper ones multiplied, lane by lane.
DCLS_HD Vector<float> add_pairs(Vector<float> sum, Vector<float> a, Vector<float> b) {
#if DCLS_SIMD_BYTES == 64
  __m512 total;
  __m512bh left, right;
#else
  __m256 total;
  __m256bh left, right;
#endif
  memcpy(&total, &sum, sizeof(total));
  memcpy(&left, &a, sizeof(left));
  memcpy(&right, &b, sizeof(right));
#if DCLS_SIMD_BYTES == 64
  total = _mm512_dpbf16_ps(total, left, right);
#else
  total = _mm256_dpbf16_ps(total, left, right);
#endif
  memcpy(&sum, &total, sizeof(total));
  return sum;
}

DCLS_HD std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
/// Lanes of the same bits: a pair is no number to calculate with.
DCLS_HD Vector<float> everywhere(std::uint32_t bits) { return values_of(bits - WordLanes{}); }

/// The values of a row, from its pairs.
DCLS_HD Vector<float> lower_values(Vector<float> pairs) { return values_of(bits_of(pairs) << 16); }

/// Makes pairs of the values that load_planes has brought. The row before the first of the tensor,
/// if there is one, is a pair of a zero and that; the row behind the last stays zero.
inline void pair_rows(const Side& side, const PlaneBox& box, std::int64_t channels, float* planes) {
  for_phases(side, [&](const auto& phase, std::int64_t index) {
    const Window w = make_window(side, box, phase);
    if (w.begin[1] == w.end[1]) return;
    for (std::int64_t c = 0; c < channels; ++c) {
      float* const plane = planes + (c * side.phase_count() + index) * box.plane;
      for (std::int64_t z = w.begin[0]; z < w.end[0]; ++z) {
        float* row = plane + (z * box.extent[1] + w.begin[1]) * box.pitch;
        // Rows are whole vectors.
        if (w.begin[1] > 0) memcpy(row - box.pitch, row, static_cast<std::size_t>(box.pitch) * 4);
        for (std::int64_t y = w.begin[1]; y < w.end[1]; ++y, row += box.pitch) {
          const bool more = y + 1 < w.end[1];
          for (std::int64_t x = 0; x < box.pitch; x += kLanes<float>) {
            WordLanes bits = bits_of(load_vector(row + x)) >> 16;
            if (more) bits |= bits_of(load_vector(row + box.pitch + x));
            store_vector(row + x, values_of(bits));
          }
        }
      }
    }
  });
}

/// sum[y][v] += weight[j] * source[y + j][v] for a run, of a source of pairs.
template <int kLength, int kRows, int kVectors>
DCLS_HD void add_run_of_pairs(const WeightRun<float, kLength>& run, const float* row,
                              std::int64_t source_pitch, Vector<float> (&sum)[kRows][kVectors]) {
  constexpr int kWhole = kLength / 2 * 2;  // cells that have a partner
  Vector<float> weight[(kLength + 1) / 2];
#pragma GCC unroll 2
  for (int j = 0; j < kWhole; j += 2) {
    weight[j / 2] = everywhere(bits_of(run.weight[j]) >> 16 | bits_of(run.weight[j + 1]));
  }
  if (kWhole < kLength) weight[kWhole / 2] = everywhere(bits_of(run.weight[kLength - 1]));
#pragma GCC unroll 16
  for (int y = 0; y < kRows + (kLength - 1) / 2 * 2; ++y) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Vector<float> pairs = load_vector(row + v * kLanes<float>);
#pragma GCC unroll 2
      for (int j = 0; j < kLength; j += 2) {
        if (y - j < 0 || y - j >= kRows) continue;
        Vector<float>& to = sum[y - j][v];
        if (j < kWhole) {
          to = add_pairs(to, pairs, weight[j / 2]);
        } else {
          to += weight[j / 2] * lower_values(pairs);
        }
      }
    }
    row += source_pitch;
  }
}
#else
inline constexpr bool kPairs = false;
#endif

/// Rows of values that a row of a scratch plane holds.
inline constexpr int kRowsOfPlane = kPairs ? 2 : 1;

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
