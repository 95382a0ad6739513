#pragma once

// How the planes of an im2col problem are cut and where a thread keeps them.

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cpu/im2col/im2col_rows.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

/// What all planes of a problem share.
template <typename T, int D>
struct Plan {
  Axis axes[D];
  Phases phases;
  std::int64_t lines;    ///< of the input: points of all axes but the last
  std::int64_t rows;     ///< of outputs: outputs of all axes but the last
  std::int64_t width;    ///< outputs of a row
  std::int64_t pitch;    ///< of rows of outputs in scratch
  std::int64_t outputs;  ///< rows * width
  std::int64_t margin;   ///< zeros on both sides of a row that is spread over the input
  bool direct;           ///< rows of the columns are worked on in place; then pitch is width
};

template <typename Storage, int D>
DCLS_HD Plan<Compute<Storage>, D> make_plan(const Im2colArgs& args, const TapLayout& layout) {
  using T = Compute<Storage>;
  Plan<T, D> plan{};
  plan.lines = plan.rows = 1;
  for (int d = 0; d < D; ++d) {
    plan.axes[d] = axis_of(args, d);
    if (d == D - 1) continue;
    plan.lines *= args.input_size[d];
    plan.rows *= args.output_size[d];
  }
  plan.phases = phases_of<T>(plan.axes[D - 1]);
  plan.width = args.output_size[D - 1];
  plan.outputs = plan.rows * plan.width;
  // Sums over several phases are added up, which the overlapping vectors of combine() forbid.
  plan.direct =
      std::is_same<T, Storage>::value && plan.width >= kLanes<T> && plan.phases.count == 1;
  plan.pitch = plan.direct ? plan.width : whole_vectors<T>(plan.width);
  plan.margin = whole_vectors<T>(layout.cap[D - 1]);
  return plan;
}

/// So many that their bytes are no overflow, and more than any memory has.
constexpr std::int64_t kMostValues = std::int64_t{1} << 58;

/// Hands out a thread's memory; with none, it only counts.
template <typename T>
struct Cutter {
  T* next;
  std::int64_t values;
};
template <typename T, typename... Sizes>
DCLS_HD T* cut(Cutter<T>& cutter, std::int64_t values, Sizes... more) {
  bool endless = false;
  ((endless |= __builtin_mul_overflow(values, more, &values)), ...);
  if (endless || values > kMostValues || cutter.values > kMostValues) {
    cutter.values = kMostValues + 1;  // it stays: nobody has so much
    return nullptr;
  }
  // A vector more: rows may be read by whole vectors to behind their end.
  const std::int64_t room = whole_vectors<T>(values) + kLanes<T>;
  T* const at = cutter.next;
  if (at != nullptr) {
    clear(at, room);
    cutter.next += room;
  }
  cutter.values += room;
  return at;
}

}  // namespace
}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
