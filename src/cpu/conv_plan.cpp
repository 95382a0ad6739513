#include "cpu/conv_plan.hpp"

#include <algorithm>

#include "common/conv_geometry.hpp"

namespace dcls::cpu {
namespace {

// Scratch of a thread, so that it stays in a second-level cache of 1 MiB, and the planes that a
// patch of the destination reads, some kilobytes, in the first.
constexpr std::int64_t kPlaneBytes = 192 << 10;
constexpr std::int64_t kLinePlaneBytes = 32 << 10;  // with kLineChannels of them at once
// Planes of many channels, each of which few cells read: in the first-level cache.
constexpr std::int64_t kManyBytes = 24 << 10;
constexpr std::int64_t kDestBytes = 256 << 10;
constexpr std::int64_t kSumBytes = 512 << 10;
/// Channels handled together in the channels-last layout: a cache line of float32. Half as many are
/// still a square of float64 values to transpose.
constexpr std::int64_t kLineChannels = 16;
constexpr std::int64_t kLineBytes = 768 << 10;
/// Units that keep many threads busy. Part of what fixes a result, so not the machine's number.
constexpr std::int64_t kEnoughUnits = 64;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t at_least_one(std::int64_t value) { return std::max<std::int64_t>(1, value); }

/// How many things of `each` bytes fit a budget: at least one, at most `most`.
std::int64_t fitting(std::int64_t budget, std::int64_t each, std::int64_t most) {
  return at_least_one(std::min(budget / at_least_one(each), most));
}

Side make_side(const ConvArgs& args, std::int64_t channels, const std::int64_t* size,
               const std::int64_t* phases) {
  Side side;
  side.channels = channels / args.groups;
  const int lead = kMaxDims - args.ndim;
  for (int d = 0; d < kMaxDims; ++d) {
    side.size[d] = d < lead ? 1 : size[d - lead];
    side.phases[d] = d < lead || phases == nullptr ? 1 : phases[d - lead];
  }
  const bool last = args.layout == Layout::kChannelsLast;
  std::int64_t step = last ? channels : 1;
  for (int d = kMaxDims - 1; d >= 0; --d) {
    side.step[d] = step;
    step *= side.size[d];
  }
  side.channel_step = last ? 1 : step;
  side.batch_step = last ? step : step * channels;
  return side;
}

AxisCells make_cells(const ConvArgs& args, ConvPass pass, int d) {
  const std::int64_t size = d < 0 ? 1 : args.kernel_size[d];
  AxisCells cells{{}, {}, {}, 0};
  if (d < 0) return {{0}, {0}, {1}, 0};
  const std::int64_t sign = pass == ConvPass::kBackwardInput ? -1 : 1;
  for (std::int64_t r = 0; r < size; ++r) {
    const geometry::AxisCell cell = geometry::axis_cell(args, d, r);
    cells.phase.push_back(cell.phase);
    cells.shift.push_back(sign * cell.shift);
    cells.useful.push_back(geometry::reads_input(args, d, r) ? 1 : 0);
  }
  cells.neighbour = sign * geometry::neighbour_step(args, d);
  return cells;
}

}  // namespace

PlannedConv::PlannedConv(const ConvArgs& args, ConvPass pass)
    : pass_(pass), channels_last_(args.layout == Layout::kChannelsLast) {
  const Side input = make_side(args, args.in_channels, args.input_size, args.stride);
  const Side output = make_side(args, args.out_channels, args.output_size, nullptr);
  const bool backward = pass == ConvPass::kBackwardInput;
  plan_.dtype = args.dtype;
  plan_.source = backward ? output : input;
  plan_.dest = backward ? input : output;
  plan_.batch = args.batch;
  plan_.groups = args.groups;
  const int lead = kMaxDims - args.ndim;
  for (int d = 0; d < kMaxDims; ++d) {
    if (d >= lead) kernel_size_[d] = args.kernel_size[d - lead];
    cells_[d] = make_cells(args, pass, d - lead);
    bool any = false;
    std::int64_t lo = 0, hi = 0;
    for (std::size_t r = 0; r < cells_[d].shift.size(); ++r) {
      if (!cells_[d].useful[r]) continue;
      lo = any ? std::min(lo, cells_[d].shift[r]) : cells_[d].shift[r];
      hi = any ? std::max(hi, cells_[d].shift[r]) : cells_[d].shift[r];
      any = true;
    }
    plan_.shift_lo[d] = lo;
    plan_.halo[d] = hi - lo;
  }
  plan_.dest_margin = pass == ConvPass::kBackwardKernel ? kMaxRun - 1 : 0;
  choose_tiles();
  if (pass != ConvPass::kBackwardKernel) choose_correlation_blocks();
}

void PlannedConv::choose_tiles() {
  ConvPlan& p = plan_;
  std::int64_t length[kMaxDims];
  for (int d = 0; d < kMaxDims; ++d) {
    length[d] = at_least_one(geometry::phase_length(p.dest.size[d], 0, p.dest.phases[d]));
    p.tile[d] = length[d];
  }
  const std::int64_t lanes = kRowBytes / value_bytes();
  constexpr std::int64_t kSmallest[kMaxDims] = {1, 8, 128};
  for (;;) {
    for (int d = 0; d < kMaxDims; ++d) p.source_extent[d] = p.tile[d] + p.halo[d];
    p.dest_pitch = round_up(p.tile[2], lanes);
    p.source_pitch = round_up(p.dest_pitch + p.halo[2], lanes);
    // An odd number of cache lines from plane to plane: the same point of many channels, which the
    // channels-last layout has side by side, must not fall into one set of the cache.
    const auto odd_lines = [&](std::int64_t values) { return (values / lanes | 1) * lanes; };
    p.source_plane = odd_lines(p.source_extent[0] * p.source_extent[1] * p.source_pitch);
    p.dest_plane = odd_lines(p.tile[0] * (p.tile[1] + 2 * p.dest_margin) * p.dest_pitch);
    const std::int64_t most = channels_last_ ? kLinePlaneBytes : kPlaneBytes;
    if (p.source_plane * p.source.phase_count() * value_bytes() <= most) break;
    // A tile reads its halo anew: a cut pays while it is no smaller than that.
    int cut = -1;
    for (int d = 0; d < kMaxDims && cut < 0; ++d) {
      if (p.tile[d] / 2 >= std::max(kSmallest[d], p.halo[d])) cut = d;
    }
    if (cut < 0) break;
    const std::int64_t parts = (length[cut] - 1) / p.tile[cut] + 1;
    p.tile[cut] = (length[cut] - 1) / (2 * parts) + 1;
  }
  for (int d = 0; d < kMaxDims; ++d) p.tiles[d] = (length[d] - 1) / p.tile[d] + 1;
  // The kernels then take a row's vectors for rows: no run may reach the next row.
  if (p.tile[1] == 1) cells_[1].neighbour = 0;
}

/// A block of channels, grown in the channels-last layout to what a transposition takes at once.
std::int64_t PlannedConv::whole_lines(std::int64_t block, const Side& side) const {
  if (!channels_last_) return block;
  return std::min((block + kLineChannels - 1) / kLineChannels * kLineChannels,
                  at_least_one(side.channels));
}

std::int64_t PlannedConv::choose_group_block(std::int64_t source_bytes,
                                             std::int64_t dest_bytes) const {
  const ConvPlan& p = plan_;
  if (!channels_last_ || p.source_blocks() > 1 || p.dest_blocks() > 1) return 1;
  const std::int64_t bytes = source_bytes * p.source.channels + dest_bytes * p.dest.channels;
  const std::int64_t channels = std::max(p.source.channels, p.dest.channels);
  const bool fits = kLineChannels / at_least_one(channels) * bytes <= kLineBytes;
  return fitting(fits ? kLineChannels : kLineChannels / 2, channels, p.groups);
}

void PlannedConv::choose_correlation_blocks() {
  ConvPlan& p = plan_;
  const std::int64_t source_bytes = p.source_plane * p.source.phase_count() * value_bytes();
  const std::int64_t dest_bytes = p.dest_plane * value_bytes();
  p.source_block = whole_lines(fitting(kManyBytes, source_bytes, p.source.channels), p.source);
  p.dest_block = whole_lines(fitting(kDestBytes, dest_bytes, p.dest.channels), p.dest);
  p.group_block = choose_group_block(source_bytes, dest_bytes);
  p.splits = 1;
  const std::int64_t units = p.tile_count() * at_least_one(p.batch) * p.group_blocks();
  if (units < kEnoughUnits && p.group_block == 1) {
    const std::int64_t parts = (kEnoughUnits - 1) / units + 1;
    p.dest_block =
        std::min(p.dest_block, whole_lines(at_least_one(p.dest.channels / parts), p.dest));
  }
}

void PlannedConv::choose_contraction_blocks(std::int64_t listed_cells) {
  ConvPlan& p = plan_;
  const std::int64_t source_bytes = p.source_plane * p.source.phase_count() * value_bytes();
  const std::int64_t dest_bytes = p.dest_plane * value_bytes();
  const std::int64_t pairs = at_least_one(p.groups * p.source.channels * p.dest.channels);
  const std::int64_t sum_bytes = (listed_cells / pairs + 1) * kRowBytes;
  // Square, so that a plane that is loaded serves as many others as can be.
  p.source_block = whole_lines(fitting(kManyBytes, source_bytes, p.source.channels), p.source);
  p.dest_block = whole_lines(fitting(kManyBytes, dest_bytes, p.dest.channels), p.dest);
  while (p.source_block * p.dest_block > 1 &&
         p.source_block * p.dest_block * sum_bytes > kSumBytes) {
    std::int64_t& larger = p.source_block > p.dest_block ? p.source_block : p.dest_block;
    larger = (larger + 1) / 2;
  }
  p.group_block = choose_group_block(source_bytes, dest_bytes);
  const std::int64_t units = p.group_blocks() * p.dest_blocks() * p.source_blocks();
  constexpr std::int64_t kPartialBytes = 64 << 20;
  p.splits = std::min((kEnoughUnits - 1) / units + 1,
                      fitting(kPartialBytes, kernel_cells() * value_bytes(), p.batch));
}

std::int64_t PlannedConv::kernel_cells() const {
  const ConvPlan& p = plan_;
  return p.groups * p.source.channels * p.dest.channels * kernel_size_[0] * kernel_size_[1] *
         kernel_size_[2];
}

std::int64_t PlannedConv::correlate_units() const {
  return plan_.tile_count() * plan_.batch * plan_.group_blocks() * plan_.dest_blocks();
}

std::int64_t PlannedConv::contract_units() const {
  return plan_.group_blocks() * plan_.dest_blocks() * plan_.source_blocks() * plan_.splits;
}

double PlannedConv::dense_work() const {
  const ConvPlan& p = plan_;
  double work = static_cast<double>(kernel_cells()) * static_cast<double>(p.batch);
  for (int d = 0; d < kMaxDims; ++d) {
    work *= static_cast<double>(p.dest.size[d]) / static_cast<double>(p.dest.phases[d]);
  }
  return work;
}

std::int64_t PlannedConv::scratch_bytes() const {
  const ConvPlan& p = plan_;
  const std::int64_t values =
      p.group_block *
      (p.source_block * p.source.phase_count() * p.source_plane + p.dest_block * p.dest_plane);
  return values * value_bytes() + p.unit_cells * kRowBytes + 2 * kRowBytes;
}

}  // namespace dcls::cpu
