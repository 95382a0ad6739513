#pragma once

// Where the lists of the direct convolution lie in memory, and how many there are at a time: host
// only.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/dispatch.hpp"
#include "cuda/conv/conv_tile_plan.hpp"

namespace dcls::cuda {

/// If the lists of a pass take more bytes than this, they are made in parts, one after the other in
/// the same memory. In float32 a list has 12 bytes for each cell, and the kernel 4: where all
/// channels are joined, that is much. Tests make it smaller.
inline std::size_t most_list_bytes = std::size_t{256} << 20;

/// A size in bytes, such that what lies behind it in memory is aligned.
inline std::size_t aligned_bytes(std::int64_t count, std::size_t size) {
  return (static_cast<std::size_t>(count) * size + 255) / 256 * 256;
}

/// Bytes of the parts of a workspace: lists of units, and partial sums of the kernel's gradient.
struct ConvWorkspace {
  std::size_t counts, units, packed, partial;
  std::size_t lists() const { return counts + units + packed; }
  std::size_t total() const { return lists() + partial; }
};

struct Unit;  // conv_units.cuh

/// The lists of a pass in device memory.
struct ConvLists {
  std::int32_t* counts = nullptr;
  Unit* units = nullptr;
  void* packed = nullptr;

  ConvLists() = default;
  ConvLists(void* memory, const ConvWorkspace& bytes) {
    if (memory == nullptr) return;
    auto* const at = static_cast<std::byte*>(memory);
    counts = reinterpret_cast<std::int32_t*>(at);
    units = reinterpret_cast<Unit*>(at + bytes.counts);
    packed = at + bytes.counts + bytes.units;
  }
};

/// Bytes of the lists of `rows` rows.
inline ConvWorkspace list_bytes_of(const ConvPlan& plan, std::int64_t rows, DType dtype) {
  const std::int64_t lists = rows * plan.stages;
  ConvWorkspace w{};
  w.counts = aligned_bytes(lists, sizeof(std::int32_t));
  w.units = aligned_bytes(lists * plan.stage_cells, 2 * sizeof(std::int32_t));
  w.packed = aligned_bytes(lists * plan.stage_cells, compute_bytes(dtype));
  return w;
}

/// Rows of the lists that a channel block has, at most.
inline std::int64_t rows_of_block(const ConvPlan& plan) {
  return plan.slots * plan.source_per_group;
}

/// Channel blocks whose lists are made at a time: one, or as many as the bytes are enough for.
inline std::int64_t blocks_of_part(const ConvPlan& plan, DType dtype) {
  const std::size_t bytes = list_bytes_of(plan, rows_of_block(plan), dtype).lists();
  if (bytes == 0) return plan.channel_blocks;
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(most_list_bytes / bytes), 1,
                                  std::max<std::int64_t>(1, plan.channel_blocks));
}

/// A launch for `blocks` channel blocks of a pass, and its lists.
inline ConvPlan part_of(const ConvPlan& plan, std::int64_t first, std::int64_t blocks) {
  const auto row = [&](std::int64_t block) {
    const std::int64_t channel =
        block == plan.channel_blocks ? plan.target_channels : channels_of_block(plan, block).first;
    return channel * plan.source_per_group;
  };
  ConvPlan part = plan;
  part.first_block = first;
  part.channel_blocks = blocks;
  part.first_list_row = row(first);
  part.list_rows = row(first + blocks) - part.first_list_row;
  return part;
}

/// Calls use(plan) for the parts of a pass.
template <typename Use>
void for_parts(const ConvPlan& plan, DType dtype, Use&& use) {
  const std::int64_t blocks = blocks_of_part(plan, dtype);
  for (std::int64_t first = 0; first < plan.channel_blocks; first += blocks) {
    use(part_of(plan, first, std::min(blocks, plan.channel_blocks - first)));
  }
}

/// What a pass needs that makes its lists in parts.
inline ConvWorkspace conv_workspace(const ConvPlan& plan, ConvPass pass, DType dtype) {
  const std::int64_t rows = blocks_of_part(plan, dtype) * rows_of_block(plan);
  ConvWorkspace w = list_bytes_of(plan, std::min(rows, plan.list_rows), dtype);
  if (pass == ConvPass::kBackwardKernel) {
    w.partial = aligned_bytes(plan.splits * plan.kernel_rows * plan.cells, compute_bytes(dtype));
  }
  return w;
}

}  // namespace dcls::cuda
