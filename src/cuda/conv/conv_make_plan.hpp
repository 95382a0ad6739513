#pragma once

// Makes the plans of conv_tile_plan.hpp: host only.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>

#include "core/dispatch.hpp"
#include "cuda/conv/conv_tile_plan.hpp"

namespace dcls::cuda {

/// Dynamic shared memory of a block: a tile, and for each warp its list and, in the gradient of the
/// kernel, its sums.
inline std::size_t conv_shared_bytes(const ConvPlan& plan, ConvPass pass, DType dtype) {
  const int size = static_cast<int>(compute_bytes(dtype));
  const std::int64_t sums = pass == ConvPass::kBackwardKernel ? plan.stage_cells * size : 0;
  return static_cast<std::size_t>(tile_bytes(plan, size) +
                                  plan.threads() / kWarp * (list_bytes(size) + sums));
}

/// Wavefronts of shared memory in which the patches of a slot load one value each: a warp needs as
/// many as its lanes want words of the same bank. `size` of a value: of 8 bytes, half a warp.
template <bool kLine>
int conv_wavefronts(const ConvPlan& plan, int size) {
  const int banks = 128 / size;
  const int patches = plan.planes * plan.strips * plan.patches;
  int sum = 0;
  for (int first = 0; first < patches; first += banks) {
    std::array<int, kWarp> lanes{};
    int most = 0;
    for (int i = first; i < std::min(first + banks, patches); ++i) {
      most =
          std::max(most, ++lanes[static_cast<std::size_t>(patch_origin<kLine>(plan, i) % banks)]);
    }
    sum += most;
  }
  return sum;
}

namespace detail {

inline ConvTensor conv_tensor(const ConvArgs& args, const std::int64_t (&size)[3],
                              std::int64_t channels) {
  ConvTensor t{};
  const bool last = args.layout == Layout::kChannelsLast;
  std::int64_t pitch = last ? channels : 1;
  for (int d = 2; d >= 0; --d) {
    t.axis[d] = pitch;
    pitch *= size[d];
  }
  t.channel = last ? 1 : pitch;
  t.batch = last ? pitch : pitch * channels;
  return t;
}

/// Parts of at most `most`, all of nearly the same size: that size; 0 of nothing.
inline int even_part(std::int64_t count, std::int64_t most) {
  return count > 0 ? static_cast<int>(divide_up(count, divide_up(count, most))) : 0;
}

/// The x with value * x = 1 modulo `modulus`, which have no common factor; 0 modulo 1.
inline std::int64_t inverse_of(std::int64_t value, std::int64_t modulus) {
  std::int64_t x = 1, next = 0, rest = value % modulus, divisor = modulus;
  while (divisor != 0 && rest != 0) {  // value * x = rest, value * next = divisor
    x -= rest / divisor * next;
    rest %= divisor;
    std::swap(x, next);
    std::swap(rest, divisor);
  }
  const std::int64_t found = rest == 0 ? next : x;
  return (found % modulus + modulus) % modulus;
}

/// `halo` and `room` bound a stage: the steps between its first and last cell, and its cells.
inline ConvAxis conv_axis(const ConvArgs& args, int d, bool mirrored, std::int64_t halo,
                          std::int64_t room) {
  ConvAxis axis{1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1};
  if (d < 0 || d >= args.ndim) return axis;
  axis.stride = args.stride[d];
  axis.padding = args.padding[d];
  axis.dilation = args.dilation[d];
  axis.kernel_size = args.kernel_size[d];
  axis.source_size = mirrored ? args.output_size[d] : args.input_size[d];
  axis.target_size = mirrored ? args.input_size[d] : args.output_size[d];
  axis.source_step = mirrored ? 1 : axis.stride;
  axis.target_step = mirrored ? axis.stride : 1;
  const std::int64_t common = std::gcd(axis.stride, axis.dilation);
  axis.class_step = axis.stride / common;
  axis.shift_step = axis.dilation / common;
  axis.classes = std::min(axis.class_step, axis.kernel_size);
  axis.inverse = inverse_of(axis.shift_step, axis.class_step);
  // Cells of a class, and those of them that can read anything.
  const std::int64_t reach =
      divide_up(axis.source_size, axis.source_step) + divide_up(axis.target_size, axis.target_step);
  const std::int64_t most =
      std::min(divide_up(axis.kernel_size, axis.class_step),
               std::max<std::int64_t>(1, divide_up(reach - 1, axis.shift_step)));
  axis.chunk = even_part(most, std::min(halo / axis.shift_step + 1, room));
  axis.chunks = divide_up(most, axis.chunk);
  return axis;
}

/// How close together the rows (d = 1) or points (d = 2) of two planes may begin, which patches of
/// `own` points read `all` of: zeros behind the end of the one may lie on those before the other.
inline int least_step(const ConvPlan& plan, int d, int own, int all) {
  const ConvAxis& axis = plan.axis[d];
  const bool single =
      axis.classes * axis.chunks == 1 && divide_up(axis.target_size, axis.target_step) <= own;
  if (!single) return all;
  const StageAxis s = stage_axis(axis, plan.mirrored, 0, 0);
  const auto clamp = [&](std::int64_t i) {
    return static_cast<int>(std::clamp<std::int64_t>(i, 0, all));
  };
  return std::max({own, clamp(s.source_length - s.shift), all - clamp(-s.shift)});
}

/// Sets what follows from planes, strips and patches; `row` and `plane` are values between rows and
/// planes that nobody needs.
template <bool kLine>
void set_tile(ConvPlan& plan, int row = 0, int plane = 0) {
  const int rows = plan.strips * Patch<kLine>::kRows;
  const int columns = plan.patches * Patch<kLine>::kColumns;
  const auto halo = [](const ConvAxis& a) {
    return static_cast<int>((a.chunk - 1) * a.shift_step);
  };
  plan.tile_rows = rows + halo(plan.axis[1]);
  plan.tile_columns = columns + halo(plan.axis[2]);
  plan.pitch = least_step(plan, 2, columns, plan.tile_columns) + row;
  plan.plane_size = least_step(plan, 1, rows, plan.tile_rows) * plan.pitch + plane;
  plan.slot_size =
      (plan.planes - 1) * plan.plane_size + (plan.tile_rows - 1) * plan.pitch + plan.tile_columns;
  plan.source_slots = plan.source_per_group == 1 && plan.target_per_group == 1 ? plan.slots : 1;
  // So that neighbouring lanes, which copy a point of each slot, write to different banks.
  const int apart = kWarp / plan.source_slots;
  if (apart < kWarp) plan.slot_size += (apart + kWarp - plan.slot_size % kWarp) % kWarp;
  plan.slot_threads =
      static_cast<int>(divide_up(plan.planes * plan.strips * plan.patches, kWarp)) * kWarp;
}

/// Spreads rows and planes, so that the lanes of a warp read different banks.
template <bool kLine, typename Fits>
void spread_tile(ConvPlan& plan, int size, Fits&& fits) {
  const int least =
      static_cast<int>(divide_up(plan.planes * plan.strips * plan.patches * size, 128));
  int best = conv_wavefronts<kLine>(plan, size), best_row = 0, best_plane = 0;
  for (int row = 0; row < (kLine ? 1 : 16) && best > least; ++row) {
    for (int plane = 0; plane < (plan.planes > 1 ? 16 : 1) && best > least; ++plane) {
      set_tile<kLine>(plan, row, plane);
      const int wavefronts = conv_wavefronts<kLine>(plan, size);
      if (wavefronts >= best || !fits()) continue;
      best = wavefronts, best_row = row, best_plane = plane;
    }
  }
  set_tile<kLine>(plan, best_row, best_plane);
}

template <bool kLine>
void cut_into_tiles(ConvPlan& plan, const ConvArgs& args, ConvPass pass) {
  const auto length = [](const ConvAxis& axis) {
    return divide_up(axis.target_size, axis.target_step);
  };
  const std::int64_t all_planes = plan.batch * length(plan.axis[0]);
  const int most = plan.slots > 1 ? kWarp : kConvThreads;
  const std::int64_t across = divide_up(length(plan.axis[2]), Patch<kLine>::kColumns);
  const std::int64_t down = divide_up(length(plan.axis[1]), Patch<kLine>::kRows);
  plan.planes = 1;
  plan.patches = std::max(1, even_part(across, plan.slots > 1 ? 8 : 16));
  plan.strips = std::max(1, even_part(down, most / plan.patches));
  const auto bytes = [&] { return conv_shared_bytes(plan, pass, args.dtype); };
  const auto fits = [&] { return bytes() <= kConvShared; };
  for (set_tile<kLine>(plan); !fits(); set_tile<kLine>(plan)) {
    // One patch of one slot does: see the halo and the test of the plans.
    if (plan.strips > 2) {
      --plan.strips;
    } else if (plan.patches > 4) {
      plan.patches = even_part(across, plan.patches - 1);
    } else if (plan.slots > 1) {
      plan.slots /= 2;
    } else if (plan.strips > 1) {
      --plan.strips;
    } else {
      plan.patches /= 2;
    }
  }
  plan.strips = std::max(1, even_part(down, plan.strips));
  // So many planes that few lanes are idle; of no more than it takes, there are more blocks.
  const int patches = plan.strips * plan.patches;
  const auto busy = [&](int planes) {
    return static_cast<double>(planes * patches) /
           static_cast<double>(divide_up(planes * patches, kWarp) * kWarp);
  };
  int best = 1;
  for (int planes = 2;
       planes <= std::min<std::int64_t>(all_planes, kMostPlanes) && planes * patches <= most;
       ++planes) {
    plan.planes = planes;
    set_tile<kLine>(plan);
    if (!fits()) break;
    const bool more = best * patches < 2 * kWarp && busy(planes) >= busy(best);
    if (busy(planes) > busy(best) || (more && bytes() <= kSmallTiles)) best = planes;
  }
  plan.planes = best;
  set_tile<kLine>(plan);
  spread_tile<kLine>(plan, static_cast<int>(compute_bytes(args.dtype)), fits);
  plan.tiles_y = divide_up(down, plan.strips);
  plan.tiles_x = divide_up(across, plan.patches);
  plan.plane_blocks = divide_up(all_planes, plan.planes);
  plan.tiles = plan.plane_blocks * plan.tiles_y * plan.tiles_x;
}

}  // namespace detail

inline ConvPlan make_conv_plan(const ConvArgs& args, ConvPass pass) {
  ConvPlan plan{};
  const bool line = args.ndim == 1;
  plan.mirrored = pass == ConvPass::kBackwardInput;
  plan.channels_last = args.layout == Layout::kChannelsLast;
  const std::int64_t halo = line ? 255 : 63;
  // The sums of a stage's cells must fit, one for each warp.
  const std::int64_t sums =
      static_cast<std::int64_t>(kSumsShared / (compute_bytes(args.dtype) * (kConvThreads / kWarp)));
  std::int64_t input_size[3], output_size[3];
  plan.cells = 1;
  plan.phases = 1;
  for (int d = 2; d >= 0; --d) {
    const int from = line ? d - 1 : d - 3 + args.ndim;  // a line is y, what has two axes y and x
    ConvAxis& axis = plan.axis[d];
    const std::int64_t room = pass != ConvPass::kBackwardKernel ? kMaxAxisSize
                              : d == 2                          ? 32
                                                                : sums / plan.axis[2].chunk;
    axis = detail::conv_axis(args, from, plan.mirrored, halo, room);
    input_size[d] = plan.mirrored ? axis.target_size : axis.source_size;
    output_size[d] = plan.mirrored ? axis.source_size : axis.target_size;
    plan.cells *= axis.kernel_size;
    plan.phases *= std::min(axis.target_step, axis.target_size);
  }
  const ConvAxis &y = plan.axis[1], &x = plan.axis[2];
  plan.stage_cells = std::int64_t{y.chunk} * x.chunk;
  plan.stages = plan.axis[0].kernel_size * y.classes * y.chunks * x.classes * x.chunks;

  const ConvTensor input = detail::conv_tensor(args, input_size, args.in_channels);
  const ConvTensor output = detail::conv_tensor(args, output_size, args.out_channels);
  plan.source = plan.mirrored ? output : input;
  plan.target = plan.mirrored ? input : output;
  plan.batch = args.batch;
  const std::int64_t in_group = args.in_channels / args.groups;
  const std::int64_t out_group = args.out_channels / args.groups;
  plan.source_per_group = plan.mirrored ? out_group : in_group;
  plan.target_per_group = plan.mirrored ? in_group : out_group;
  plan.target_channels = plan.mirrored ? args.in_channels : args.out_channels;
  plan.kernel_rows = args.out_channels * in_group;
  plan.list_rows = plan.kernel_rows;

  const bool depthwise = in_group == 1 && out_group == 1;
  plan.block_group = depthwise ? plan.target_channels : plan.target_per_group;
  std::int64_t most_slots = 1;
  if (depthwise && plan.channels_last) {
    most_slots = static_cast<std::int64_t>(32 / storage_bytes(args.dtype));  // a sector of memory
  } else if (!depthwise && pass != ConvPass::kBackwardKernel) {
    most_slots = kConvThreads / kWarp;  // which share the source
  }
  most_slots = std::min<std::int64_t>(most_slots, kConvThreads / kWarp);
  plan.slots = 1;
  while (plan.slots * 2 <= std::min(most_slots, plan.block_group)) plan.slots *= 2;
  for (;;) {
    if (line) {
      detail::cut_into_tiles<true>(plan, args, pass);
    } else {
      detail::cut_into_tiles<false>(plan, args, pass);
    }
    // Slots with tiles of their own may leave no room for planes enough to keep a warp busy: idle
    // lanes cost more than the other half of a sector, which another block reads.
    const int busy = plan.planes * plan.strips * plan.patches;
    const bool more = plan.tiles > plan.tiles_y * plan.tiles_x;
    if (plan.slots <= 2 || plan.source_slots == 1 || !more || busy * 8 >= kWarp * 7) break;
    plan.slots /= 2;
  }
  plan.group_blocks = divide_up(plan.block_group, plan.slots);
  plan.channel_blocks =
      plan.block_group == 0 ? 0 : plan.target_channels / plan.block_group * plan.group_blocks;
  const std::int64_t blocks =
      std::max<std::int64_t>(1, plan.channel_blocks * plan.source_per_group * plan.stages);
  plan.splits = std::min(std::max<std::int64_t>(1, kKernelBlocks / blocks), plan.tiles);
  return plan;
}

}  // namespace dcls::cuda
