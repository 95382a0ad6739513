#pragma once

// Planes of the fast FIR algorithm, see fast_fir.hpp. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/conv/conv_kernels.hpp"
#include "cpu/conv/conv_pairs.hpp"
#include "cpu/conv/conv_units.hpp"
#include "cpu/conv/fast_fir.hpp"
#include "cpu/simd/rows.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// Whether the passes of a compute type have the algorithm: float64 is for those who want every
/// digit, and pairs are no numbers.
template <typename T>
inline constexpr bool kHasFast = !kPairs && std::is_same_v<T, float>;

/// A class has a row for a block of rows, and a patch of its rows should have as many sums as there
/// are registers for.
inline constexpr std::int64_t kFastRows = (kRegisters == 32 ? 6 : 10) * fast_fir::kBlock;

/// Looks at values for any that the algorithm cannot take.
class BoundCheck {
 public:
  void look(Vector<float> value) {
    const WordLanes size = bits_of(value) & 0x7fffffffu;
    most_ = most_ > size ? most_ : size;
  }
  bool fit() const {
    const float bound = fast_fir::kMost;
    std::uint32_t limit;
    memcpy(&limit, &bound, sizeof(limit));
    bool all = true;
    for (std::int64_t i = 0; i < kLanes<float>; ++i) all &= most_[i] < limit;
    return all;
  }

 private:
  // Of positive values, infinity and NaN the bits are in the order of the values.
  WordLanes most_{};
};

/// The scratch planes of a thread, and what it has seen of the values.
struct FastScratch {
  float* differences;  ///< of the levels in the bits of 1, 2, ...
  float* classes;
  float* cells;  ///< of the classes of one kernel plane
  Range rows{};  ///< of the source plane that lie in the tensor
  BoundCheck check{};

  FastScratch(const ConvPlan& p, float* memory)
      : differences(memory),
        classes(memory + p.difference_values()),
        cells(memory + p.fast_values()) {}

  /// Before the first unit of a tile: what lies around its points stays zero.
  void begin_tile(const ConvPlan& p, const PlaneBox& source) {
    const Window window = make_window(p.source, source, {0, 0, 0});
    rows = {window.begin[1], window.end[1]};
    std::memset(differences, 0, static_cast<std::size_t>(p.fast_values()) * sizeof(float));
  }
};

/// to = from minus the rows `distance` further down, for the rows that are not zero. Those that
/// reach behind a slice are not made, and not read.
inline void make_differences(const ConvPlan& p, const float* from, std::int64_t distance,
                             Range rows, BoundCheck& seen, float* to) {
  BoundCheck check = seen;  // in a register
  const std::int64_t last = p.source_extent[1] - distance;
  const std::int64_t end = rows.end < last ? rows.end : last;
  const std::int64_t step = distance * p.source_pitch;
  for (std::int64_t z = 0; z < p.source_extent[0]; ++z) {
    const std::int64_t slice = z * p.source_extent[1];
    const std::int64_t stop = (slice + end) * p.source_pitch;
    for (std::int64_t i = (slice + rows.begin) * p.source_pitch; i < stop; i += kLanes<float>) {
      const Vector<float> value = load_vector(from + i);
      check.look(value);
      store_vector(to + i, value - load_vector(from + i + step));
    }
  }
  seen = check;
}

/// Makes the planes of a source channel's differences, and calls function(class, the first row that
/// it reads) for all classes: those of a plane one after the other, while it is in the cache.
/// `made`: an earlier call has made the planes.
template <typename Function>
DCLS_HD void for_classes(const ConvPlan& p, const float* source, FastScratch& scratch, bool made,
                         const Function& function) {
  const auto plane = [&](int index) {
    return index == 0 ? source : scratch.differences + (index - 1) * p.source_plane;
  };
  for (int index = 0; index < fast_fir::kBlock; ++index) {
    if (index != 0 && !made) {
      const int distance = index & -index;
      const Range rows = {clamp(scratch.rows.begin - index, 0, scratch.rows.begin),
                          scratch.rows.end};
      make_differences(p, plane(index - distance), distance, rows, scratch.check,
                       scratch.differences + (index - 1) * p.source_plane);
    }
    for (int number = 0; number < fast_fir::kClasses; ++number) {
      const fast_fir::Class c = fast_fir::class_of(number);
      if (c.plane == index) function(number, plane(index) + c.offset * p.source_pitch);
    }
  }
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
