// The lists of a kernel's runs: which cells there are to visit, in the order and with the offsets
// that the kernels of conv_kernels.cpp need.

#include <algorithm>

#include "common/dispatch.hpp"
#include "cpu/conv_plan.hpp"
#include "cpu/parallel.hpp"

namespace dcls::cpu {

/// Calls visit(length, z, y, x) for the runs of one (output, input) channel pair: `y` is the cell
/// with the lowest shift, and the next ones lie cells_[1].neighbour further on.
template <typename IsActive, typename Visit>
void PlannedConv::visit_runs(std::int64_t row, std::int64_t dest_phase, const IsActive& active,
                             const Visit& visit) const {
  const bool dest_split = pass_ == ConvPass::kBackwardInput;
  std::int64_t wanted[kMaxDims];
  for (int d = kMaxDims - 1; d >= 0; --d) {
    wanted[d] = dest_phase % plan_.dest.phases[d];
    dest_phase /= plan_.dest.phases[d];
  }
  const auto takes_part = [&](int d, std::int64_t r) {
    const std::size_t at = static_cast<std::size_t>(r);
    return cells_[d].useful[at] != 0 && (!dest_split || cells_[d].phase[at] == wanted[d]);
  };
  const std::int64_t ny = kernel_size_[1];
  const std::int64_t step = cells_[1].neighbour;
  // Without neighbours each cell is a chain of its own.
  const std::int64_t chains = step == 0 ? ny : std::min(ny, std::abs(step));
  for (std::int64_t z = 0; z < kernel_size_[0]; ++z) {
    if (!takes_part(0, z)) continue;
    for (std::int64_t x = 0; x < kernel_size_[2]; ++x) {
      if (!takes_part(2, x)) continue;
      const std::int64_t column = (row * kernel_size_[0] + z) * ny * kernel_size_[2] + x;
      for (std::int64_t chain = 0; chain < chains; ++chain) {
        const std::int64_t count = step == 0 ? 1 : (ny - 1 - chain) / chains + 1;
        const std::int64_t first = step < 0 ? chain + (count - 1) * chains : chain;
        std::int64_t length = 0;
        for (std::int64_t i = 0; i <= count; ++i) {
          const std::int64_t y = first + i * step;
          if (i < count && takes_part(1, y) && active(column + y * kernel_size_[2])) {
            ++length;
            continue;
          }
          // Cut into the fewest pieces, of about equal length.
          std::int64_t begin = i - length;
          for (std::int64_t pieces = (length + kMaxRun - 1) / kMaxRun; pieces > 0; --pieces) {
            const std::int64_t piece = (length + pieces - 1) / pieces;
            visit(static_cast<int>(piece), z, first + begin * step, x);
            begin += piece;
            length -= piece;
          }
          length = 0;
        }
      }
    }
  }
}

/// Calls visit(list, length, offset, cell) for the runs of all lists of one destination channel.
template <typename IsActive, typename Visit>
void PlannedConv::visit_channel(std::int64_t dest_channel, const IsActive& active,
                                const Visit& visit) const {
  const ConvPlan& p = plan_;
  const std::int64_t group = dest_channel / p.dest.channels;
  for (std::int64_t phase = 0; phase < p.dest.phase_count(); ++phase) {
    for (std::int64_t source = 0; source < p.source.channels; ++source) {
      const std::int64_t row = pass_ == ConvPass::kBackwardInput
                                   ? (group * p.source.channels + source) * p.dest.channels +
                                         dest_channel % p.dest.channels
                                   : dest_channel * p.source.channels + source;
      const std::int64_t list = p.list_index(dest_channel, phase, source / p.source_block);
      visit_runs(row, phase, active, [&](int length, std::int64_t z, std::int64_t y,
                                         std::int64_t x) {
        const std::int64_t cell[kMaxDims] = {z, y, x};
        std::int64_t plane = source % p.source_block;
        std::int64_t at[kMaxDims];
        for (int d = 0; d < kMaxDims; ++d) {
          const std::size_t r = static_cast<std::size_t>(cell[d]);
          const std::int64_t source_phase =
              pass_ == ConvPass::kBackwardInput ? 0 : cells_[d].phase[r];
          plane = plane * p.source.phases[d] + source_phase;
          at[d] = cells_[d].shift[r] - p.shift_lo[d];
        }
        const std::int64_t offset =
            plane * p.source_plane +
            (at[0] * p.source_extent[1] + at[1]) * p.source_pitch + at[2];
        visit(list, length, offset,
              ((row * kernel_size_[0] + z) * kernel_size_[1] + y) * kernel_size_[2] + x);
      });
    }
  }
}

/// Counts the runs, allocates their arrays, and calls write(slot, length, offset, cell) for each.
template <typename IsActive, typename Write>
void PlannedConv::list_runs(const IsActive& active, const std::int64_t (&run_bytes)[kMaxRun],
                            int num_threads, const Write& write) {
  const ConvPlan& p = plan_;
  const std::int64_t channels = p.groups * p.dest.channels;
  const std::int64_t lists = channels * p.dest.phase_count() * p.source_blocks();
  for (auto& begin : begin_) begin.assign(static_cast<std::size_t>(lists + 1), 0);
  const std::int64_t grain = 1 + (std::int64_t{1} << 15) / std::max<std::int64_t>(
                                     1, kernel_cells() / std::max<std::int64_t>(1, channels));
  const int threads = useful_threads(channels, grain, num_threads);
  parallel_for(channels, grain, threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t c = first; c < last; ++c) {
      visit_channel(c, active, [&](std::int64_t list, int length, std::int64_t, std::int64_t) {
        ++begin_[length - 1][static_cast<std::size_t>(list + 1)];
      });
    }
  });
  for (int n = 0; n < kMaxRun; ++n) {
    std::vector<std::int64_t>& begin = begin_[n];
    for (std::size_t l = 1; l < begin.size(); ++l) begin[l] += begin[l - 1];
    runs_[n].reset(new std::byte[static_cast<std::size_t>(begin.back() * run_bytes[n])]);
    plan_.lists.runs[n] = runs_[n].get();
    plan_.lists.begin[n] = begin.data();
  }
  // Where the next run of a list and a length goes; only the thread of its channel moves it.
  std::vector<std::int64_t> next[kMaxRun];
  for (int n = 0; n < kMaxRun; ++n) next[n] = begin_[n];
  parallel_for(channels, grain, threads, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t c = first; c < last; ++c) {
      visit_channel(c, active, [&](std::int64_t list, int length, std::int64_t offset,
                                   std::int64_t cell) {
        const int n = length - 1;
        const std::int64_t at = next[n][static_cast<std::size_t>(list)]++;
        write(runs_[n].get() + at * run_bytes[n], length, offset, cell);
      });
    }
  });
}

template <typename Storage>
void PlannedConv::list_weights_of(const Storage* kernel, int num_threads) {
  using T = Compute<Storage>;
  const std::int64_t step = cells_[1].neighbour * kernel_size_[2];
  const std::int64_t run_bytes[kMaxRun] = {sizeof(WeightRun<T, 1>), sizeof(WeightRun<T, 2>),
                                           sizeof(WeightRun<T, 3>), sizeof(WeightRun<T, 4>)};
  list_runs(
      [kernel](std::int64_t cell) { return numeric::load(kernel[cell]) != T(0); }, run_bytes,
      num_threads, [=](std::byte* slot, int length, std::int64_t offset, std::int64_t cell) {
        const auto fill = [&](auto* run) {
          run->offset = offset;
          for (int j = 0; j < length; ++j) run->weight[j] = numeric::load(kernel[cell + j * step]);
        };
        switch (length) {
          case 1: return fill(reinterpret_cast<WeightRun<T, 1>*>(slot));
          case 2: return fill(reinterpret_cast<WeightRun<T, 2>*>(slot));
          case 3: return fill(reinterpret_cast<WeightRun<T, 3>*>(slot));
          default: return fill(reinterpret_cast<WeightRun<T, 4>*>(slot));
        }
      });
}

void PlannedConv::list_weights(const void* kernel, int num_threads) {
  dispatch_dtype(plan_.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    list_weights_of(static_cast<const Storage*>(kernel), num_threads);
  });
}

void PlannedConv::list_cells(const std::uint8_t* support, int num_threads) {
  constexpr std::int64_t kBytes = sizeof(CellRun);
  list_runs([support](std::int64_t cell) { return support == nullptr || support[cell] != 0; },
            {kBytes, kBytes, kBytes, kBytes}, num_threads,
            [](std::byte* slot, int, std::int64_t offset, std::int64_t cell) {
              *reinterpret_cast<CellRun*>(slot) = {offset, cell};
            });
  plan_.cell_step = cells_[1].neighbour * kernel_size_[2];
  count_unit_cells();
}

void PlannedConv::count_unit_cells() {
  const ConvPlan& p = plan_;
  const std::int64_t blocks = p.source_blocks();
  const std::int64_t units = p.group_blocks() * p.dest_blocks() * blocks;
  std::vector<std::int64_t> cells(static_cast<std::size_t>(units), 0);
  for (std::int64_t c = 0; c < p.groups * p.dest.channels; ++c) {
    const std::int64_t group = c / p.dest.channels;
    const std::int64_t unit = (group / p.group_block * p.dest_blocks() +
                               c % p.dest.channels / p.dest_block) *
                              blocks;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::size_t l = static_cast<std::size_t>(p.list_index(c, 0, b));
      for (int n = 0; n < kMaxRun; ++n) {
        cells[static_cast<std::size_t>(unit + b)] += (n + 1) * (begin_[n][l + 1] - begin_[n][l]);
      }
    }
  }
  plan_.unit_cells = cells.empty() ? 0 : *std::max_element(cells.begin(), cells.end());
}

}  // namespace dcls::cpu
