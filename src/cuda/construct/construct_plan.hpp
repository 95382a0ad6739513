#pragma once

// How the CUDA kernels of the construct operator cut a problem: host only.

#include <cstddef>
#include <cstdint>

#include "dcls/construct.hpp"

namespace dcls::cuda {

inline constexpr int kForwardThreads = 256;
inline constexpr int kCellsPerThread = 4;
inline constexpr int kTileCells = kForwardThreads * kCellsPerThread;
/// Values of shared memory for taps and scales: 16 KiB in float32, 32 KiB in float64.
inline constexpr int kSharedValues = 4096;
/// Lanes that sum an element's taps over an axis.
inline constexpr int kSumLanes = 8;

/// How the forward kernel cuts the problem: a block builds one box of cells for a few rows, with
/// the taps of a chunk of elements in shared memory at a time.
struct ForwardPlan {
  std::int64_t items;          ///< row groups times boxes
  std::int64_t boxes;          ///< boxes of cells in a row
  std::int64_t grid_boxes[3];  ///< boxes along each axis
  int box[3];                  ///< cells of a box along each axis
  int box_cells;
  int entries;  ///< taps of an element in a box: the sum of box[]
  int rows;     ///< rows of a block
  int chunk;    ///< elements of a row in shared memory at a time

  std::size_t shared_values() const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(chunk) *
           static_cast<std::size_t>(entries + 1);
  }
};

inline ForwardPlan make_forward_plan(const ConstructArgs& args) {
  ForwardPlan plan{};
  plan.boxes = 1;
  plan.box_cells = 1;
  for (int d = args.ndim - 1; d >= 0; --d) {
    const std::int64_t room = kTileCells / plan.box_cells;
    plan.box[d] = static_cast<int>(args.size[d] < room ? args.size[d] : room);
    plan.grid_boxes[d] = (args.size[d] + plan.box[d] - 1) / plan.box[d];
    plan.boxes *= plan.grid_boxes[d];
    plan.box_cells *= plan.box[d];
    plan.entries += plan.box[d];
  }
  plan.rows = plan.boxes > 1 ? 1 : kTileCells / plan.box_cells;
  if (plan.rows > args.rows) plan.rows = static_cast<int>(args.rows);
  // A row's element needs `entries` taps and one scale. The least case, one element of each row,
  // fits: rows * (entries + 1) <= kTileCells * (ndim + 1) = kSharedValues.
  static_assert(kTileCells * (kMaxDims + 1) <= kSharedValues, "one element a row must fit");
  const std::int64_t most = kSharedValues / (plan.rows * (plan.entries + 1));
  plan.chunk = static_cast<int>(args.elements < most ? args.elements : most);
  plan.items = (args.rows + plan.rows - 1) / plan.rows * plan.boxes;
  return plan;
}

inline constexpr int kBackwardThreads = 128;
/// Lanes that share one element: they split the last axis.
inline constexpr int kGroupLanes = 8;
inline constexpr int kBackwardGroups = kBackwardThreads / kGroupLanes;
/// Values of shared memory for the taps of all axes but the last: at most 48 KiB in float64.
inline constexpr int kBackwardShared = 6144;

/// The taps of the axes but the last, in shared memory where they fit and evaluated again at each
/// use where they do not.
struct BackwardPlan {
  std::int64_t items;  ///< rows * elements
  int entries;         ///< taps in shared memory per element; 0 for none

  std::size_t shared_values() const {
    return 3 * static_cast<std::size_t>(kBackwardGroups) * static_cast<std::size_t>(entries);
  }
};

inline BackwardPlan make_backward_plan(const ConstructArgs& args) {
  BackwardPlan plan{};
  plan.items = args.rows * args.elements;
  std::int64_t entries = 0;
  for (int d = 0; d < args.ndim - 1; ++d) entries += args.size[d];
  const bool fits = entries * 3 * kBackwardGroups <= kBackwardShared;
  plan.entries = fits ? static_cast<int>(entries) : 0;
  return plan;
}

}  // namespace dcls::cuda
