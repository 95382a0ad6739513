#pragma once

// What a unit of the forward pass brings into the cache while it computes. Only for files compiled
// per instruction set.

#include <cstdint>

#include "cpu/conv/conv_units.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// Brings values into the second-level cache, some cache lines at a time, while others are computed
/// with.
class Prefetch {
 public:
  Prefetch() = default;
  /// `count` lines that are `step` bytes apart, in about `times` calls of some().
  Prefetch(const void* first, std::int64_t step, std::int64_t count, std::int64_t times)
      : at_(static_cast<const char*>(first)),
        step_(step),
        count_(count),
        each_(count / times + 1) {}

  void some() {
    for (std::int64_t i = 0; i < each_ && count_ > 0; ++i, --count_, at_ += step_) {
      __builtin_prefetch(at_, 0, 2);
    }
  }

 private:
  const char* at_ = nullptr;
  std::int64_t step_ = 0, count_ = 0, each_ = 0;
};

/// The planes of a unit on one side, where there is one tile and one block of channels, and they
/// lie one after the other or have the channels side by side. `patch`: points for a call of some().
template <typename Storage>
Prefetch prefetch_unit(const ConvPlan& p, const Side& side, const Storage* tensor,
                       std::int64_t unit, std::int64_t patch) {
  constexpr std::int64_t kLineBytes = 64;
  const bool dense = side.step[2] * side.size[2] == side.step[1];
  if (!dense || p.tile_count() > 1 || p.source_blocks() > 1 || p.dest_blocks() > 1) return {};
  const std::int64_t image = unit / p.group_blocks() % p.batch;
  const std::int64_t count = p.group_block * side.channels;
  const std::int64_t channel = unit % p.group_blocks() * count;
  const std::int64_t points = side.size[0] * side.size[1] * side.size[2];
  const std::int64_t bytes = static_cast<std::int64_t>(sizeof(Storage));
  const std::int64_t patches = 1 + count * points / patch;
  const Storage* const first = tensor + image * side.batch_step + channel * side.channel_step;
  if (side.channel_step == 1) return {first, side.step[2] * bytes, points, patches};
  return {first, kLineBytes, count * points * bytes / kLineBytes, patches};
}

/// What comes into the cache meanwhile: the source of the next unit, and the lines of its own
/// destination, which would otherwise be waited for before a part of them is written.
struct Ahead {
  Prefetch source;
  Prefetch dest;
  void some() {
    source.some();
    dest.some();
  }
};

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
