#pragma once

// Planning a pass of the direct convolution: tiles, blocks and the lists of the kernel's runs.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/dispatch.hpp"
#include "cpu/conv/conv_kernels.hpp"

namespace dcls::cpu {

/// The cells of one axis of the kernel, as a pass sees them.
struct AxisCells {
  std::vector<std::int64_t> phase;  ///< of the split side: its number among the used ones
  std::vector<std::int64_t> shift;  ///< of the source against the destination
  std::vector<char> useful;         ///< whether it reads any input
  std::int64_t neighbour;           ///< index of the next higher shift minus this one's; 0: none
  std::vector<std::int64_t> used;   ///< the phases of useful cells, in rising order
};

/// Useful cells of one axis in the order of visiting: cells[begin[p] ... begin[p + 1]) are those of
/// the destination phase p.
struct SortedCells {
  std::vector<std::int64_t> cells;
  std::vector<std::int64_t> begin;
};

/// A cell of a kernel plane, in the order of visiting.
struct OrderedCell {
  std::int64_t offset;  ///< in the scratch planes of a source channel
  std::int64_t cell;    ///< in the kernel plane
  std::int64_t phase;   ///< of the destination
};

/// A kernel plane among all, and its source channel.
struct RowOfCells {
  std::int64_t index;
  std::int64_t block;     ///< of source channels
  std::int64_t in_block;  ///< the channel's place in it
};

/// A ConvPlan, and the memory of its lists.
class PlannedConv {
 public:
  /// `fast`: whether it may take the fast FIR algorithm, where that is less work.
  PlannedConv(const ConvArgs& args, ConvPass pass, bool fast);

  /// Lists the non-zero cells of `kernel`, for the forward pass and backward_input.
  void list_weights(const void* kernel, int num_threads);
  /// Lists the cells where `support` is not 0, or all of them if it is null. The plan keeps it.
  void list_cells(const std::uint8_t* support, int num_threads);

  const ConvPlan& plan() const { return plan_; }
  /// Whether some points of the destination have no cell at all: the pass does not write them.
  bool leaves_points() const {
    const Side& dest = plan_.dest;
    for (int d = 0; d < kMaxDims; ++d) {
      if (dest.used[d] != dest.phases[d]) return true;
    }
    return false;
  }
  /// Whether a listed weight is infinite or NaN.
  bool has_infinite_weights() const { return infinite_weights_; }
  /// Whether the rows are images of the batch, in whole vectors of kRowBytes.
  bool has_whole_rows() const;
  std::int64_t forward_units() const;
  std::int64_t backward_kernel_units() const;
  /// Multiply-adds of all units if no cell were zero: to judge what is worth a thread.
  double dense_work() const;
  std::int64_t scratch_bytes() const;
  /// That the lists are of: with the fast FIR algorithm those of all classes.
  std::int64_t kernel_cells() const;

  /// The same without the fast FIR algorithm, for values it cannot take; null if there is no need.
  std::unique_ptr<const PlannedConv> plain;

 private:
  void choose_tiles();
  void choose_forward_blocks();
  void choose_backward_kernel_blocks(std::int64_t listed_cells);
  /// From a cell of a run to the next one.
  std::int64_t run_step() const { return plan_.fast ? 1 : cells_[1].neighbour * kernel_size_[2]; }
  std::int64_t value_bytes() const { return static_cast<std::int64_t>(compute_bytes(plan_.dtype)); }

  std::int64_t whole_lines(std::int64_t block, const Side& side) const;
  std::int64_t choose_group_block(std::int64_t source_bytes, std::int64_t dest_bytes,
                                  std::int64_t sum_bytes) const;

  // In conv_fast_plan.cpp.
  bool is_fast_less() const;
  void make_fast(bool fast);
  void order_classes();
  /// The cells of all classes, where the marked cells are fewer so: then the plan is for them.
  /// Null: they are not, or the algorithm cannot take them.
  std::unique_ptr<float[]> spread_weights(const void* kernel, int num_threads);
  std::unique_ptr<std::uint8_t[]> spread_support(const std::uint8_t* support, int num_threads);
  template <typename Function>
  void for_kernel_blocks(int num_threads, const Function& function) const;

  // In conv_lists.cpp.
  SortedCells sort_cells(int d) const;
  void order_cells();
  void order_cell(const OrderedCell& cell, bool starts);
  template <typename Storage>
  void list_weights_of(const Storage* kernel, int num_threads);
  void mark_cells(DType dtype, const void* values, int num_threads);
  std::int64_t count_marks() const;
  std::int64_t reorder_bytes() const;
  void reorder(const RowOfCells& row, unsigned char* bytes);
  template <typename Write>
  void list_runs(const std::int64_t (&run_bytes)[kMaxRun], int num_threads, const Write& write);
  template <typename Function>
  void for_rows(std::int64_t first, std::int64_t last, const Function& function) const;
  void next_source(RowOfCells& row) const;
  template <typename Visit>
  void for_runs(const RowOfCells& row, std::int64_t dest, const Visit& visit) const;
  void count_unit_cells();

  ConvPlan plan_{};  ///< points to the members
  ConvPass pass_;
  bool channels_last_;
  bool folded_;  ///< whether the batch is the last axis of the plan
  bool may_be_fast_;
  /// Of what is listed: with the fast FIR algorithm there is a row for each class and block.
  std::int64_t kernel_size_[kMaxDims] = {1, 1, 1};
  /// The kernel's row that reads the rows of the source shifted by shift_lo + index; -1: none does.
  std::vector<std::int64_t> row_of_tap_;
  AxisCells cells_[kMaxDims];
  std::vector<OrderedCell> order_;
  /// A bit for each of them: whether it does not read the row after that of the cell before it.
  std::vector<std::uint64_t> starts_;
  std::vector<std::int64_t> rank_;     ///< place in order_ of a cell; -1 if it reads no input
  bool in_order_ = true;               ///< whether the cells lie in memory as they are visited
  std::int64_t source_blocks_ = 1;     ///< of the plan, of which it is a quotient
  std::vector<std::uint64_t> marked_;  ///< a bit for each cell of the kernel that is to be listed
  /// The same in the order of visiting: order_words_ words for each kernel plane.
  std::vector<std::uint64_t> ordered_;
  std::int64_t order_words_ = 0;
  std::atomic<bool> infinite_weights_{false};
  std::vector<std::int64_t> begin_[kMaxRun];
  std::unique_ptr<std::byte[]> runs_[kMaxRun];
};

}  // namespace dcls::cpu
