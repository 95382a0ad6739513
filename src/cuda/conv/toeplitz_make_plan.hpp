#pragma once

// Makes the plans of toeplitz_plan.hpp: host only.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "cuda/conv/channels_first_plan.hpp"
#include "cuda/conv/conv_lists.hpp"
#include "cuda/conv/conv_make_plan.hpp"
#include "cuda/conv/toeplitz_plan.hpp"

namespace dcls::cuda {

/// Shared memory of a block: any GPU with these tensor cores gives it, and most room for two.
inline constexpr std::size_t kToeplitzShared = 96 * 1024;
/// Of it, what the lines of the kernel take.
inline constexpr std::int32_t kLineShared = 32 * 1024;
inline constexpr std::int64_t kWidestKernel = 63;
/// Bytes of shared memory that a warp reads at once.
inline constexpr std::int32_t kBankBytes = 128;
/// The column tiles and the blocks of source columns that there are kernels for. Images of up to 8
/// columns that keep their width meet 1 block, those of up to 16 meet 3, however wide the kernel.
struct ToeplitzColumns {
  int tiles, blocks;
};
inline constexpr int kMostColumnBlocks = 5;
inline constexpr ToeplitzColumns kToeplitzColumns[] = {{1, 1}, {2, 3}, {4, 3}, {4, 4},
                                                       {4, 5}, {7, 3}, {7, 4}, {7, 5}};

/// Whether TF32 beats float32 in a training step, by the model of benchmarks/cuda_model.py: not on
/// narrow maps, and in channels_last only with wide kernels. Their cells cost TF32 nothing.
inline bool tf32_pays(const ConvArgs& args) {
  const int last = args.ndim - 1;
  return args.output_size[last] > 8 &&
         (args.layout == Layout::kChannelsFirst || args.kernel_size[last] >= 20);
}

/// Whether the tensor cores take a problem, if the GPU has them: depthwise, one or two axes, stride
/// and dilation 1, 16 bits a value, or float32 that may be rounded to TF32.
inline bool toeplitz_covers(const ConvArgs& args) {
  const bool tf32 = args.dtype == DType::kFloat32 && args.allow_tf32;
  if (args.dtype != DType::kFloat16 && args.dtype != DType::kBFloat16 && !tf32) return false;
  if (args.ndim > 2 || args.in_channels != args.groups || args.out_channels != args.groups) {
    return false;
  }
  constexpr std::int64_t kFar = std::int64_t{1} << 20, kMost = std::int64_t{1} << 30;
  bool covered = args.batch > 0 && args.batch < kFar && args.groups > 0 && args.groups < kFar;
  for (int d = 0; d < args.ndim; ++d) {
    const std::int64_t least = d == args.ndim - 1 ? 3 : 1;
    covered = covered && args.stride[d] == 1 && args.dilation[d] == 1 &&
              args.kernel_size[d] >= least && args.kernel_size[d] <= kWidestKernel &&
              args.padding[d] < kFar && args.padding[d] > -kFar;
  }
  for (const auto& size : {args.input_size, args.output_size}) {
    const std::int64_t rows = args.ndim == 2 ? size[0] : 1, columns = size[args.ndim - 1];
    covered = covered && rows > 0 && rows < kFar && columns > 0 && columns < kFar &&
              rows * columns < kMost &&
              // A block has at least one row and kBlock columns, and they have indices of 32 bits.
              rows * ((columns + kBlock - 1) / kBlock) < kMost / (args.batch * args.groups);
  }
  return covered;
}

inline std::int32_t line_bytes(const ToeplitzPlan& plan) {
  return line_words(plan.column_blocks) * 4;
}
inline std::size_t toeplitz_shared_bytes(const ToeplitzPlan& plan) {
  return static_cast<std::size_t>(
      plan.slots * (plan.slot_pitch * plan.bytes + plan.kernel_rows * line_bytes(plan)));
}

namespace toeplitz {

inline std::int32_t ceil_to(std::int32_t value, std::int32_t step) {
  const std::int32_t rest = ((value % step) + step) % step;
  return rest == 0 ? value : value + step - rest;
}
inline std::int32_t parts_of(std::int32_t count, std::int32_t part) {
  return (count + part - 1) / part;
}
/// Parts of at most `most`, all of nearly the same size: that size.
inline std::int32_t even(std::int32_t count, std::int32_t most) {
  return parts_of(count, parts_of(count, std::max(most, 1)));
}
/// Values that are copied at once, at most `copy`, if lines have `width` of them.
inline std::int32_t copy_of(std::int32_t width, std::int32_t copy) {
  while (width % copy != 0) copy /= 2;
  return copy;
}

/// The columns: fewest blocks, then the widest copies.
inline void plan_columns(ToeplitzTiles& plan, std::int32_t padding) {
  const std::int32_t tiles = parts_of(plan.target_width, kBlock);
  const std::int32_t most = kLoadBytes / plan.bytes;
  std::int32_t fewest = std::numeric_limits<std::int32_t>::max();
  // A lead that is a multiple of what is copied at once keeps the copies aligned.
  for (std::int32_t step = most; step > 0; step /= 2) {
    const std::int32_t lead = ceil_to(padding, step);
    const std::int32_t all = parts_of(kBlock - 1 + lead - padding + plan.kernel_width, kBlock);
    // Those that are left of the source for all tiles, or right of it, meet zeros alone.
    const std::int32_t left = std::max(lead / kBlock - (tiles - 1), 0);
    const std::int32_t end = parts_of(std::max(lead + plan.source_width, 1), kBlock);
    const std::int32_t blocks = std::max(std::min(all, end) - left, 1);
    if (blocks >= fewest) continue;
    fewest = blocks;
    plan.lead = lead - left * kBlock;
    plan.offset = padding - plan.lead;
    plan.copy = plan.channels_last ? 1 : copy_of(plan.source_width, step);
  }
  plan.store = plan.channels_last ? 1 : copy_of(plan.target_width, most);
  plan.chunks = parts_of(fewest, kMostColumnBlocks);
  std::int32_t least = std::numeric_limits<std::int32_t>::max();
  for (const ToeplitzColumns& kernel : kToeplitzColumns) {
    if (kernel.blocks < parts_of(fewest, plan.chunks)) continue;
    // A group of tiles also loads the blocks at its right that the next one loads again.
    const std::int32_t cost =
        parts_of(tiles, kernel.tiles) * (2 * kernel.tiles + kernel.blocks - 1);
    if (cost > least) continue;
    least = cost;
    plan.column_tiles = kernel.tiles;
    plan.column_blocks = kernel.blocks;
  }
  plan.tiles_x = parts_of(tiles, plan.column_tiles);
  std::int32_t widest = 1;
  for (std::int32_t x = 0; x < plan.tiles_x; ++x) {
    const int first = x * plan.column_tiles * kBlock;
    widest = std::max(widest, end_block(plan, first) - first_block(plan, first));
  }
  // The rows that are loaded together lie in different banks.
  plan.pitch = (widest * kBlock / plan.unit | 1) * plan.unit;
  plan.target_pitch = (plan.column_tiles | 1) * kBlock;
}

/// The tile of a block, from its images and the rows of each. @returns its values.
inline std::int32_t plan_rows(ToeplitzTiles& plan) {
  const std::int32_t reach = plan.kernel_height - 1;
  plan.plane_rows = plan.rows + reach;
  plan.shared = 0;
  if (plan.rows == plan.target_height && plan.planes > 1) {
    // The zeros below an image are those above the next one.
    const std::int32_t below = plan.plane_rows - plan.padding - plan.source_height;
    plan.shared = std::max(0, std::min(plan.padding, below));
    plan.plane_rows -= plan.shared;
  }
  // So many banks from plane to plane as the rows of a product would be apart within one.
  const std::int32_t units = plan.pitch / plan.unit, all = kBankBytes / (plan.unit * plan.bytes);
  const std::int32_t extra = ((plan.rows - plan.plane_rows) * units % all + all) % all;
  plan.plane_pitch = plan.plane_rows * plan.pitch + (plan.planes > 1 ? extra * plan.unit : 0);
  return plan.planes * plan.plane_pitch + plan.shared * plan.pitch;
}

/// The problem and the columns of a plan. Rows of the source are `unit` values apart, times an odd
/// number.
inline ToeplitzTiles plan_problem(const ConvArgs& args, bool mirrored, std::int32_t unit) {
  ToeplitzTiles plan{};
  plan.bytes = static_cast<std::uint8_t>(storage_bytes(args.dtype));
  plan.unit = static_cast<std::uint8_t>(unit);
  const int x = args.ndim - 1;
  const auto size = [&](const std::int64_t (&sizes)[kMaxDims], int d) {
    return args.ndim == 1 && d == 0 ? 1 : static_cast<std::int32_t>(sizes[d == 0 ? 0 : x]);
  };
  plan.mirrored = mirrored;
  const auto& source = plan.mirrored ? args.output_size : args.input_size;
  const auto& target = plan.mirrored ? args.input_size : args.output_size;
  plan.batch = static_cast<std::int32_t>(args.batch);
  plan.channels = static_cast<std::int32_t>(args.groups);
  plan.source_height = size(source, 0), plan.source_width = size(source, 1);
  plan.target_height = size(target, 0), plan.target_width = size(target, 1);
  plan.kernel_height = size(args.kernel_size, 0), plan.kernel_width = size(args.kernel_size, 1);
  const auto padding = [&](int d, std::int32_t kernel) {
    const std::int32_t before =
        args.ndim == 1 && d == 0 ? 0 : static_cast<std::int32_t>(args.padding[d == 0 ? 0 : x]);
    return plan.mirrored ? kernel - 1 - before : before;
  };
  plan.padding = padding(0, plan.kernel_height);
  plan.channels_last = args.layout == Layout::kChannelsLast && args.groups > 1;
  plan_columns(plan, padding(1, plan.kernel_width));
  return plan;
}

/// The tile of a block: the fewest rows to compute, load and prepare, counted as rows of a product.
inline ToeplitzPlan plan_block(ToeplitzPlan plan) {
  plan.kernel_rows = even(plan.kernel_height, kLineShared / (plan.slots * line_bytes(plan)));
  ToeplitzPlan best{};
  double least = std::numeric_limits<double>::infinity();
  for (std::int32_t warps = 1; warps * plan.slots <= kToeplitzWarps; ++warps) {
    const std::int32_t most = warps * kWarpRows;
    plan.slot_warps = warps;
    for (std::int32_t parts = parts_of(plan.target_height, most);; ++parts) {
      plan.rows = parts_of(plan.target_height, parts);
      plan.planes = plan.rows == plan.target_height ? std::min(plan.batch, most / plan.rows) : 1;
      plan.slot_pitch = std::max(plan_rows(plan), kWarpRows * plan.slot_warps * plan.target_pitch);
      const bool fits = toeplitz_shared_bytes(plan) <= kToeplitzShared;
      if (!fits && plan.rows > 1) continue;
      plan.tiles_n = parts_of(plan.batch, plan.planes);
      plan.tiles_y = parts_of(plan.target_height, plan.rows);
      const double cost =
          1.0 * plan.tiles_n * plan.tiles_y * (most + 0.25 * plan.planes * plan.plane_rows + 48);
      if (fits && cost < least) {
        least = cost;
        best = plan;
      }
      break;
    }
  }
  return best;
}

}  // namespace toeplitz

/// The plan of the forward pass or of the gradient of the input, of a problem that is covered.
inline ToeplitzPlan make_toeplitz_plan(const ConvArgs& args, ConvPass pass) {
  // ldmatrix loads 8 rows of 16 bytes.
  const auto unit = kLoadBytes / static_cast<std::int32_t>(storage_bytes(args.dtype));
  ToeplitzPlan plan{};
  const bool mirrored = pass == ConvPass::kBackwardInput;
  static_cast<ToeplitzTiles&>(plan) = toeplitz::plan_problem(args, mirrored, unit);
  const std::int32_t widest = toeplitz_slots(plan.bytes);
  // Fewer channels where the halo of a large kernel would leave too few rows of each.
  constexpr std::int32_t kFewRows = 16;
  ToeplitzPlan best{};
  for (plan.slots = plan.channels_last ? widest : 1; plan.slots > 0; plan.slots /= 2) {
    best = toeplitz::plan_block(plan);
    if (best.rows >= std::min(kFewRows, plan.target_height)) break;
  }
  best.channel_blocks = toeplitz::parts_of(best.channels, best.slots);
  if (plan.channels_last && best.slots == widest && best.channels % widest == 0) {
    best.copy = best.store = widest;
  }
  return best;
}

inline std::size_t toeplitz_shared_bytes(const ToeplitzKernelPlan& plan) {
  const std::size_t tiles =
      static_cast<std::size_t>((plan.slot_pitch + plan.target_slot) * plan.bytes);
  // The sums of all warps, in the same place.
  const std::size_t sums =
      static_cast<std::size_t>(plan.threads() / 32 * kGradientRows * row_sums(plan)) *
      sizeof(float);
  return std::max(tiles, sums);
}

/// The plan of the gradient of the kernel, of tensors in channels_first.
inline ToeplitzKernelPlan make_toeplitz_kernel_plan(ConvArgs args) {
  args.layout = Layout::kChannelsFirst;
  ToeplitzKernelPlan plan{};
  // Values of 32 bits are loaded one by one, 8 of each of 4 rows; others by ldmatrix.
  static_cast<ToeplitzTiles&>(plan) = toeplitz::plan_problem(args, false, kBlock);
  const std::int32_t groups = toeplitz::parts_of(plan.kernel_height, kGradientRows);
  plan.units = groups * plan.chunks;
  plan.block_units = toeplitz::even(groups, kToeplitzWarps / plan.chunks) * plan.chunks;
  const auto fits = [&plan] {
    const std::int32_t rows =
        toeplitz::ceil_to(plan.planes * plan.rows, gradient_depth(plan.bytes));
    plan.slot_pitch = toeplitz::plan_rows(plan);
    plan.target_slot = rows * plan.target_pitch;
    return toeplitz_shared_bytes(plan) <= kToeplitzShared;
  };
  std::int32_t parts = toeplitz::parts_of(plan.target_height, kGradientTileRows);
  for (;; ++parts) {
    plan.rows = toeplitz::parts_of(plan.target_height, parts);
    plan.planes =
        plan.rows == plan.target_height ? std::min(plan.batch, kGradientTileRows / plan.rows) : 1;
    if (fits() || plan.rows == 1) break;
  }
  while (!fits() && plan.planes > 1) plan.planes /= 2;  // lines, with rows of zeros around each
  plan.unit_blocks = toeplitz::parts_of(plan.units, plan.block_units);
  plan.tiles_n = toeplitz::parts_of(plan.batch, plan.planes);
  plan.tiles_y = toeplitz::parts_of(plan.target_height, plan.rows);
  const std::int64_t tiles = std::int64_t{plan.tiles_n} * plan.tiles_y * plan.tiles_x;
  const std::int64_t blocks = std::int64_t{plan.channels} * plan.unit_blocks;
  plan.splits = static_cast<std::int32_t>(std::min(tiles, (kKernelBlocks + blocks - 1) / blocks));
  return plan;
}

/// What conv_kernel_finish and layer_finish read of it: how many sums there are of a cell.
inline ConvPlan make_toeplitz_finish_plan(const ConvArgs& args) {
  ConvPlan finish = make_conv_plan(args, ConvPass::kBackwardKernel);
  finish.splits = make_toeplitz_kernel_plan(args).splits;
  return finish;
}

/// Bytes of the sums of all splits.
inline std::size_t toeplitz_kernel_sums(const ConvPlan& finish) {
  return aligned_bytes(finish.splits * finish.kernel_rows * finish.cells, sizeof(float));
}
/// The sums, and behind them the copies in channels_first.
inline std::size_t toeplitz_kernel_workspace(const ConvArgs& args) {
  return toeplitz_kernel_sums(make_toeplitz_finish_plan(args)) + channels_first_bytes(args);
}

/// Narrows the copies to what the addresses of the tensors allow: results stay the same.
inline void align_toeplitz_plan(ToeplitzTiles& plan, const void* source, const void* target) {
  const auto narrow = [&plan](std::int32_t& copy, const void* tensor) {
    while (reinterpret_cast<std::uintptr_t>(tensor) %
               static_cast<std::uintptr_t>(plan.bytes * copy) !=
           0) {
      copy = plan.channels_last ? 1 : copy / 2;
    }
  };
  narrow(plan.copy, source);
  narrow(plan.store, target);
}

}  // namespace dcls::cuda
