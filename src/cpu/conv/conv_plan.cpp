#include "cpu/conv/conv_plan.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "core/conv_geometry.hpp"
#include "core/dispatch.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/runtime/features.hpp"

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
// The same with the batch as columns. Rows are few and short then: what counts is that a list is
// long, and that a plane, which has to be transposed, serves many others.
constexpr std::int64_t kFoldedPlaneBytes = 5 << 10;
constexpr std::int64_t kFoldedManyBytes = 128 << 10;
constexpr std::int64_t kFoldedDestBytes = 1 << 20;
constexpr std::int64_t kFoldedPairBytes = 256 << 10;  // of either side, for backward_kernel
constexpr std::int64_t kFoldedSumBytes = 1 << 20;
/// Lines of so many points or fewer are too short for the lists of a depthwise convolution: it
/// takes the batch as columns. By measurement (batches of 3 to 64, kernels of 9 to 129).
constexpr std::int64_t kShortLine = 160;
/// Channels handled together in the channels-last layout: a cache line of float32. Half as many are
/// still a square of float64 values to transpose.
constexpr std::int64_t kLineChannels = 16;
constexpr std::int64_t kLineBytes = 768 << 10;
/// Units that keep many threads busy. Part of what fixes a result, so not the machine's number.
constexpr std::int64_t kEnoughUnits = 64;
constexpr std::int64_t kEnoughFoldedUnits = 16;
/// Fewer, since those that share cells have to be added up.
constexpr std::int64_t kEnoughKernelUnits = 32;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// More than any machine has, and so little that some of them are no overflow.
constexpr double kMostScratch = 0x1p52;

/// Values of a plane, or more than kMostScratch: a dilation may spread few cells over more points
/// than there are addresses.
std::int64_t plane_values(std::int64_t slices, std::int64_t rows, std::int64_t pitch) {
  const double values =
      static_cast<double>(slices) * static_cast<double>(rows) * static_cast<double>(pitch);
  return values > kMostScratch ? std::int64_t{1} << 53 : slices * rows * pitch;
}

std::int64_t at_least_one(std::int64_t value) { return std::max<std::int64_t>(1, value); }

/// How many things of `each` bytes fit a budget: at least one, at most `most`.
std::int64_t fitting(std::int64_t budget, std::int64_t each, std::int64_t most) {
  return at_least_one(std::min(budget / at_least_one(each), most));
}

/// `cells` is null for the side that is not split. `lead` axes of size 1 come before the spatial
/// ones, and with `folded` the batch after them.
Side make_side(const ConvArgs& args, std::int64_t channels, const std::int64_t* size,
               const AxisCells* cells, int lead, bool folded) {
  static constexpr std::int64_t kNoPhase[1] = {0};
  Side side;
  side.channels = channels / args.groups;
  const bool last = args.layout == Layout::kChannelsLast;
  std::int64_t step = last ? channels : 1;
  for (int d = kMaxDims - 1; d >= 0; --d) {
    const int axis = d - lead;
    const bool spatial = axis >= 0 && axis < args.ndim;
    side.size[d] = spatial ? size[axis] : 1;
    // Phases behind the end have no points.
    const bool split = spatial && cells != nullptr;
    side.phases[d] = split ? std::min(args.stride[axis], at_least_one(side.size[d])) : 1;
    side.used[d] = split ? static_cast<std::int64_t>(cells[d].used.size()) : 1;
    side.phase[d] = split ? cells[d].used.data() : kNoPhase;
    side.step[d] = step;
    step *= side.size[d];
  }
  side.channel_step = last ? 1 : step;
  side.batch_step = last ? step : step * channels;
  if (folded) {
    side.size[kMaxDims - 1] = args.batch;
    side.step[kMaxDims - 1] = side.batch_step;
  }
  return side;
}

AxisCells make_cells(const ConvArgs& args, ConvPass pass, int d) {
  AxisCells cells{{}, {}, {}, 0, {}};
  if (d < 0 || d >= args.ndim) return {{0}, {0}, {1}, 0, {0}};
  const std::int64_t sign = pass == ConvPass::kBackwardInput ? -1 : 1;
  for (std::int64_t r = 0; r < args.kernel_size[d]; ++r) {
    const geometry::AxisCell cell = geometry::axis_cell(args, d, r);
    cells.phase.push_back(cell.phase);
    cells.shift.push_back(sign * cell.shift);
    cells.useful.push_back(geometry::reads_input(args, d, r) ? 1 : 0);
  }
  cells.neighbour = sign * geometry::neighbour_step(args, d);
  for (std::size_t r = 0; r < cells.phase.size(); ++r) {
    if (cells.useful[r] != 0) cells.used.push_back(cells.phase[r]);
  }
  std::sort(cells.used.begin(), cells.used.end());
  cells.used.erase(std::unique(cells.used.begin(), cells.used.end()), cells.used.end());
  for (std::int64_t& phase : cells.phase) {
    phase = std::lower_bound(cells.used.begin(), cells.used.end(), phase) - cells.used.begin();
  }
  return cells;
}

}  // namespace

std::int64_t vector_bytes() {
  return std::max<std::int64_t>(32, DCLS_OF_SIMD_LEVEL(conv_kernels).vector_bytes);
}

/// Whether the images of a batch take the place of the columns, and the spatial axes those of
/// slices and rows. All loads are then aligned, cells that are neighbours on the last axis, as
/// interpolated ones are, share them, and small maps fill the vectors. But the planes have to be
/// transposed. By measurement (AVX-512, kernels of 17x17 and 25, batches of 8 to 64).
bool batch_as_columns(const ConvArgs& args, std::int64_t vector_bytes) {
  const int last = args.ndim - 1;
  if (args.ndim == kMaxDims || args.stride[last] != 1) return false;
  const std::int64_t lanes = vector_bytes / static_cast<std::int64_t>(compute_bytes(args.dtype));
  const std::int64_t columns = args.output_size[last];
  // How full the vectors are, times a common factor.
  const std::int64_t as_columns = args.batch * round_up(columns, lanes);
  const std::int64_t as_images = columns * round_up(args.batch, lanes);
  if (args.ndim == 1 && args.in_channels > args.groups) return as_columns >= as_images;
  if (args.ndim == 1 && columns <= kShortLine) return 3 * as_columns >= 2 * as_images;
  if (args.layout != Layout::kChannelsLast && columns <= lanes) {
    return 10 * as_columns >= 11 * as_images;
  }
  return 2 * as_columns >= 3 * as_images;
}

PlannedConv::PlannedConv(const ConvArgs& args, ConvPass pass, bool fast)
    : pass_(pass),
      channels_last_(args.layout == Layout::kChannelsLast),
      folded_(batch_as_columns(args, vector_bytes())) {
  const int lead = kMaxDims - args.ndim - (folded_ ? 1 : 0);
  for (int d = 0; d < kMaxDims; ++d) cells_[d] = make_cells(args, pass, d - lead);
  const Side input = make_side(args, args.in_channels, args.input_size, cells_, lead, folded_);
  const Side output = make_side(args, args.out_channels, args.output_size, nullptr, lead, folded_);
  const bool backward = pass == ConvPass::kBackwardInput;
  plan_.dtype = args.dtype;
  plan_.source = backward ? output : input;
  plan_.dest = backward ? input : output;
  plan_.batch = folded_ ? 1 : args.batch;
  plan_.groups = args.groups;
  for (int d = 0; d < kMaxDims; ++d) {
    if (d >= lead && d < lead + args.ndim) kernel_size_[d] = args.kernel_size[d - lead];
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
  may_be_fast_ = fast && !folded_ && args.dtype != DType::kFloat64 && plan_.source.channels == 1 &&
                 plan_.source.phase_count() == 1 && plan_.dest.phase_count() == 1 &&
                 std::abs(cells_[1].neighbour) == 1;
  for (std::int64_t r = 0; may_be_fast_ && r < kernel_size_[1]; ++r) {
    const std::size_t at = static_cast<std::size_t>(r);
    if (cells_[1].useful[at] == 0) continue;
    const std::size_t shift = static_cast<std::size_t>(cells_[1].shift[at] - plan_.shift_lo[1]);
    if (shift >= row_of_tap_.size()) {
      row_of_tap_.resize((shift / fast_fir::kBlock + 1) * fast_fir::kBlock, -1);
    }
    row_of_tap_[shift] = r;
  }
  plan_.fast_cells = {kernel_size_[0], kernel_size_[1], kernel_size_[2],
                      static_cast<std::int64_t>(row_of_tap_.size()) / fast_fir::kBlock,
                      row_of_tap_.data()};
  make_fast(false);
}

void PlannedConv::choose_tiles() {
  ConvPlan& p = plan_;
  std::int64_t length[kMaxDims];
  for (int d = 0; d < kMaxDims; ++d) {
    length[d] = at_least_one(geometry::phase_length(p.dest.size[d], 0, p.dest.phases[d]));
    p.tile[d] = length[d];
  }
  const std::int64_t lanes = kRowBytes / value_bytes();
  // Images side by side: few batches are multiples of the longest vector.
  const std::int64_t row_lanes = folded_ ? vector_bytes() / value_bytes() : lanes;
  // Planes of many phases are short, and there are many of them.
  const bool many = p.source.phase_count() > 64;
  const std::int64_t smallest[kMaxDims] = {1, many ? 1 : 8, folded_ || many ? lanes : 128};
  // An odd number of cache lines from plane to plane: the same point of many channels, which the
  // channels-last layout has side by side, must not fall into one set of the cache.
  const auto odd_lines = [&](std::int64_t values) {
    return (round_up(values, lanes) / lanes | 1) * lanes;
  };
  const auto bytes = [&](std::int64_t plane, std::int64_t planes) {
    return static_cast<double>(plane) * static_cast<double>(planes * value_bytes());
  };
  for (;;) {
    if (p.fast) p.tile[1] = round_up(p.tile[1], fast_fir::kBlock);
    for (int d = 0; d < kMaxDims; ++d) p.source_extent[d] = p.tile[d] + p.halo[d];
    if (p.fast) p.source_extent[1] = p.tile[1] + round_up(p.halo[1] + 1, fast_fir::kBlock) - 1;
    p.dest_pitch = round_up(p.tile[2], row_lanes);
    p.source_pitch = round_up(p.dest_pitch + p.halo[2], row_lanes);
    p.source_plane =
        odd_lines(plane_values(p.source_extent[0], p.source_extent[1], p.source_pitch));
    p.dest_plane = odd_lines(plane_values(p.tile[0], p.tile[1] + 2 * p.dest_margin, p.dest_pitch));
    const std::int64_t most = channels_last_                     ? kLinePlaneBytes
                              : folded_ && p.source.channels > 1 ? kFoldedPlaneBytes
                                                                 : kPlaneBytes;
    const double source_bytes = bytes(p.source_plane, p.source.phase_count());
    if (source_bytes <= static_cast<double>(most)) break;
    // A tile reads its halo anew: a cut pays while it is no smaller than that.
    int cut = -1;
    const int order[kMaxDims] = {folded_ ? 2 : 0, folded_ ? 0 : 1, folded_ ? 1 : 2};
    for (const int d : order) {
      if (cut < 0 && p.tile[d] / 2 >= std::max(smallest[d], p.halo[d])) cut = d;
    }
    if (cut < 0) {
      if (std::max(source_bytes, bytes(p.dest_plane, 1)) > kMostScratch) throw std::bad_alloc();
      break;
    }
    const std::int64_t parts = (length[cut] - 1) / p.tile[cut] + 1;
    p.tile[cut] = (length[cut] - 1) / (2 * parts) + 1;
  }
  for (int d = 0; d < kMaxDims; ++d) p.tiles[d] = (length[d] - 1) / p.tile[d] + 1;
  p.class_plane = !p.fast
                      ? 0
                      : odd_lines(p.tile[0] * (p.tile[1] / fast_fir::kBlock + 2 * p.dest_margin) *
                                  p.dest_pitch);
  // The kernels then take a row's vectors for rows: no run may reach the next row.
  if (p.tile[1] == 1) cells_[1].neighbour = 0;
}

/// A block of channels, grown in the channels-last layout to what a transposition takes at once.
std::int64_t PlannedConv::whole_lines(std::int64_t block, const Side& side) const {
  if (!channels_last_) return block;
  return std::min((block + kLineChannels - 1) / kLineChannels * kLineChannels,
                  at_least_one(side.channels));
}

std::int64_t PlannedConv::choose_group_block(std::int64_t source_bytes, std::int64_t dest_bytes,
                                             std::int64_t sum_bytes) const {
  const ConvPlan& p = plan_;
  if (!channels_last_ || p.source_blocks() > 1 || p.dest_blocks() > 1) return 1;
  const std::int64_t bytes = source_bytes * p.source.channels + dest_bytes * p.dest.channels +
                             sum_bytes * p.source.channels * p.dest.channels;
  const std::int64_t channels = std::max(p.source.channels, p.dest.channels);
  const bool fits = kLineChannels / at_least_one(channels) * bytes <= kLineBytes;
  return fitting(fits ? kLineChannels : kLineChannels / 2, channels, p.groups);
}

void PlannedConv::choose_forward_blocks() {
  ConvPlan& p = plan_;
  const std::int64_t source_bytes = p.source_plane * p.source.phase_count() * value_bytes();
  const std::int64_t dest_bytes = p.dest_plane * value_bytes();
  const std::int64_t most_source = folded_ ? kFoldedManyBytes : kManyBytes;
  const std::int64_t most_dest = folded_ ? kFoldedDestBytes : kDestBytes;
  const std::int64_t enough = folded_ ? kEnoughFoldedUnits : kEnoughUnits;
  p.source_block = whole_lines(fitting(most_source, source_bytes, p.source.channels), p.source);
  p.dest_block = whole_lines(fitting(most_dest, dest_bytes, p.dest.channels), p.dest);
  p.group_block = choose_group_block(source_bytes, dest_bytes, 0);
  p.splits = 1;
  const std::int64_t units = p.tile_count() * at_least_one(p.batch) * p.group_blocks();
  if (units < enough && p.group_block == 1) {
    const std::int64_t parts = (enough - 1) / units + 1;
    p.dest_block =
        std::min(p.dest_block, whole_lines(at_least_one(p.dest.channels / parts), p.dest));
  }
}

void PlannedConv::choose_backward_kernel_blocks(std::int64_t listed_cells) {
  ConvPlan& p = plan_;
  const std::int64_t source_bytes = p.source_plane * p.source.phase_count() * value_bytes();
  const std::int64_t dest_bytes = p.dest_plane * value_bytes();
  const std::int64_t pairs = at_least_one(p.groups * p.source.channels * p.dest.channels);
  const std::int64_t sum_bytes = (listed_cells / pairs + 1) * kRowBytes;
  // Square, so that a plane that is loaded serves as many others as can be.
  const std::int64_t most = folded_ ? kFoldedPairBytes : kManyBytes;
  const std::int64_t most_sums = folded_ ? kFoldedSumBytes : kSumBytes;
  const std::int64_t enough = folded_ ? kEnoughFoldedUnits : kEnoughKernelUnits;
  p.source_block = whole_lines(fitting(most, source_bytes, p.source.channels), p.source);
  p.dest_block = whole_lines(fitting(most, dest_bytes, p.dest.channels), p.dest);
  while (p.source_block * p.dest_block > 1 &&
         p.source_block * p.dest_block * sum_bytes > most_sums) {
    std::int64_t& larger = p.source_block > p.dest_block ? p.source_block : p.dest_block;
    larger = (larger + 1) / 2;
  }
  // For the sums' sake, half of the channels only where they still fill vectors.
  const bool halves = kLineChannels / 2 * value_bytes() >= vector_bytes();
  p.group_block = choose_group_block(source_bytes, dest_bytes, halves ? sum_bytes : 0);
  const std::int64_t units = p.group_blocks() * p.dest_blocks() * p.source_blocks();
  constexpr std::int64_t kPartialBytes = 64 << 20;
  p.splits =
      std::min((enough - 1) / units + 1,
               fitting(kPartialBytes, kernel_cells() * value_bytes(), p.tile_count() * p.batch));
}

bool PlannedConv::has_whole_rows() const {
  return folded_ && plan_.dest_pitch * value_bytes() % kRowBytes == 0;
}

std::int64_t PlannedConv::kernel_cells() const {
  const ConvPlan& p = plan_;
  return p.groups * p.source.channels * p.dest.channels * kernel_size_[0] * kernel_size_[1] *
         kernel_size_[2];
}

std::int64_t PlannedConv::forward_units() const {
  return plan_.tile_count() * plan_.batch * plan_.group_blocks() * plan_.dest_blocks();
}

std::int64_t PlannedConv::backward_kernel_units() const {
  return plan_.group_blocks() * plan_.dest_blocks() * plan_.source_blocks() * plan_.splits;
}

double PlannedConv::dense_work() const {
  const ConvPlan& p = plan_;
  double work = static_cast<double>(kernel_cells()) * static_cast<double>(p.batch);
  for (int d = 0; d < kMaxDims; ++d) {
    work *= static_cast<double>(p.dest.size[d]) / static_cast<double>(p.dest.phases[d]);
  }
  return p.fast ? work / fast_fir::kBlock : work;
}

std::int64_t PlannedConv::scratch_bytes() const {
  const ConvPlan& p = plan_;
  const std::int64_t values =
      p.group_block *
          (p.source_block * p.source.phase_count() * p.source_plane + p.dest_block * p.dest_plane) +
      p.fast_values() + (p.fast ? p.fast_cells.of_classes() : 0);
  return values * value_bytes() + p.unit_cells * kRowBytes + 2 * kRowBytes;
}

}  // namespace dcls::cpu
