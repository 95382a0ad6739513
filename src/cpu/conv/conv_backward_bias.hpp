#pragma once

// The gradient of the bias: the sum of the output's gradient over batch and points. Only for files
// compiled per instruction set.

#include <cstdint>

#include "core/dtype.hpp"
#include "cpu/simd/rows.hpp"
#include "dcls/conv.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// Values that a lane adds up before it goes to a double: float32 alone would lose digits on large
/// maps.
inline constexpr std::int64_t kBiasRun = 256;

/// The sum of `count` values next to each other.
template <typename Storage>
DCLS_HD double sum_values(const Storage* from, std::int64_t count) {
  using T = Compute<Storage>;
  constexpr std::int64_t kVectors = 4;  // in flight at once
  double total = 0;
  for (std::int64_t begin = 0; begin < count;) {
    const std::int64_t end =
        count - begin < kBiasRun * kLanes<T> ? count : begin + kBiasRun * kLanes<T>;
    Vector<T> sum[kVectors] = {};
    std::int64_t i = begin;
    for (; i + kVectors * kLanes<T> <= end; i += kVectors * kLanes<T>) {
#pragma GCC unroll 4
      for (std::int64_t v = 0; v < kVectors; ++v) sum[v] += load_lanes(from + i + v * kLanes<T>);
    }
    for (; i < end; i += kLanes<T>) sum[0] += load_some(from + i, end - i);
    total += static_cast<double>(sum_lanes<T>((sum[0] + sum[1]) + (sum[2] + sum[3])));
    begin = end;
  }
  return total;
}

/// The sums of a vector of channels that lie next to each other, `count` of them, over `points`
/// points that lie `step` values apart.
template <typename Storage>
DCLS_HD void sum_lines(const Storage* from, std::int64_t points, std::int64_t step,
                       std::int64_t count, double* totals) {
  using T = Compute<Storage>;
  for (std::int64_t i = 0; i < count; ++i) totals[i] = 0;
  for (std::int64_t begin = 0; begin < points; begin += kBiasRun) {
    const std::int64_t end = points - begin < kBiasRun ? points : begin + kBiasRun;
    Vector<T> sum = {};
    for (std::int64_t p = begin; p < end; ++p) sum += load_some(from + p * step, count);
    T lanes[kLanes<T>];
    store_vector(lanes, sum);
    for (std::int64_t i = 0; i < count; ++i) totals[i] += static_cast<double>(lanes[i]);
  }
}

/// grad_bias of the channels [begin, end), from grad_output as `args` describes it.
template <typename Storage>
void bias_channels(const ConvArgs& args, const Storage* grad_output, Storage* grad_bias,
                   std::int64_t begin, std::int64_t end) {
  using T = Compute<Storage>;
  std::int64_t points = 1;
  for (int d = 0; d < args.ndim; ++d) points *= args.output_size[d];
  if (args.layout == Layout::kChannelsLast) {
    double totals[kLanes<T>];
    for (std::int64_t c = begin; c < end; c += kLanes<T>) {
      const std::int64_t count = end - c < kLanes<T> ? end - c : kLanes<T>;
      sum_lines(grad_output + c, args.batch * points, args.out_channels, count, totals);
      for (std::int64_t i = 0; i < count; ++i) {
        numeric::store(grad_bias + c + i, static_cast<T>(totals[i]));
      }
    }
    return;
  }
  for (std::int64_t c = begin; c < end; ++c) {
    double total = 0;
    for (std::int64_t n = 0; n < args.batch; ++n) {
      total += sum_values(grad_output + (n * args.out_channels + c) * points, points);
    }
    numeric::store(grad_bias + c, static_cast<T>(total));
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
