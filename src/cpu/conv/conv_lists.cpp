// The lists of a kernel's runs: which cells there are to visit, in the order and with the offsets
// that conv_forward.hpp and conv_backward_kernel.hpp need.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>

#include "core/dispatch.hpp"
#include "cpu/conv/conv_bits.hpp"
#include "cpu/conv/conv_plan.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

/// Bytes before those of a row's cells: the last is for the cells that read no input.
constexpr std::int64_t kFront = 8;

}  // namespace

/// Those of the middle axis go by chains, whose cells read neighbouring rows.
SortedCells PlannedConv::sort_cells(int d) const {
  const AxisCells& axis = cells_[d];
  const std::int64_t count = kernel_size_[d];
  const std::int64_t step = d == 1 ? axis.neighbour : 0;
  const std::int64_t chains = step == 0 ? 1 : std::min(count, std::abs(step));
  const bool split = pass_ == ConvPass::kBackwardInput;
  const auto for_cells = [&](const auto& function) {  // (cell, phase)
    for (std::int64_t chain = 0; chain < chains; ++chain) {
      const std::int64_t last = (count - 1 - chain) / chains;
      for (std::int64_t i = 0; i <= last; ++i) {
        const std::int64_t cell = chain + (step < 0 ? last - i : i) * chains;
        const std::size_t at = static_cast<std::size_t>(cell);
        if (axis.useful[at] != 0) function(cell, split ? axis.phase[at] : 0);
      }
    }
  };
  SortedCells sorted;
  sorted.begin.assign((split ? axis.used.size() : 1) + 2, 0);
  std::int64_t* const next = sorted.begin.data() + 1;
  for_cells([&](std::int64_t, std::int64_t phase) { ++next[phase + 1]; });
  std::partial_sum(sorted.begin.begin(), sorted.begin.end(), sorted.begin.begin());
  sorted.cells.resize(static_cast<std::size_t>(sorted.begin.back()));
  for_cells([&](std::int64_t cell, std::int64_t phase) {
    sorted.cells[static_cast<std::size_t>(next[phase]++)] = cell;
  });
  return sorted;
}

/// Lays down the cells of one kernel plane in the order in which they are visited: by destination
/// phase, and the cells of a column that read neighbouring rows one after the other.
void PlannedConv::order_cells() {
  const ConvPlan& p = plan_;
  const bool dest_split = pass_ == ConvPass::kBackwardInput;
  const std::int64_t step = cells_[1].neighbour;
  const SortedCells sorted[kMaxDims] = {sort_cells(0), sort_cells(1), sort_cells(2)};
  for (std::int64_t dest_phase = 0; dest_phase < p.dest.phase_count(); ++dest_phase) {
    std::int64_t phase[kMaxDims];
    for (std::int64_t d = kMaxDims - 1, rest = dest_phase; d >= 0; --d) {
      phase[d] = rest % p.dest.used[d];
      rest /= p.dest.used[d];
    }
    const auto for_cells = [&](int d, const auto& function) {
      const std::int64_t* const begin = sorted[d].begin.data() + phase[d];
      for (std::int64_t i = begin[0]; i < begin[1]; ++i) {
        function(sorted[d].cells[static_cast<std::size_t>(i)]);
      }
    };
    for_cells(0, [&](std::int64_t z) {
      for_cells(2, [&](std::int64_t x) {
        std::int64_t before = -1;
        for_cells(1, [&](std::int64_t y) {
          const std::int64_t cell[kMaxDims] = {z, y, x};
          std::int64_t plane = 0;
          std::int64_t at[kMaxDims];
          for (int d = 0; d < kMaxDims; ++d) {
            const std::size_t r = static_cast<std::size_t>(cell[d]);
            plane = plane * p.source.used[d] + (dest_split ? 0 : cells_[d].phase[r]);
            at[d] = cells_[d].shift[r] - p.shift_lo[d];
          }
          const std::int64_t index = (z * kernel_size_[1] + y) * kernel_size_[2] + x;
          const std::int64_t row = at[0] * p.source_extent[1] + at[1];
          order_cell({plane * p.source_plane + row * p.source_pitch + at[2], index, dest_phase},
                     step == 0 || before < 0 || y != before + step);
          before = y;
        });
      });
    });
  }
}

/// The next cell in the order. `starts`: it does not read the row after that of the cell before it.
void PlannedConv::order_cell(const OrderedCell& cell, bool starts) {
  const std::int64_t rank = static_cast<std::int64_t>(order_.size());
  rank_[static_cast<std::size_t>(cell.cell)] = rank;
  in_order_ = in_order_ && cell.cell == rank;
  if (order_.size() % 64 == 0) starts_.push_back(0);
  if (starts) starts_.back() |= std::uint64_t{1} << order_.size() % 64;
  order_.push_back(cell);
}

/// Marks the cells of the kernel that are to be visited: the others cost no more than their bit.
void PlannedConv::mark_cells(DType dtype, const void* values, int num_threads) {
  const std::int64_t cells = kernel_cells();
  marked_.assign(static_cast<std::size_t>(cells / 64 + 2), 0);
  const ConvKernels& simd = DCLS_OF_SIMD_LEVEL(conv_kernels);
  const bool support = pass_ == ConvPass::kBackwardKernel;
  constexpr double kWordWork = 8;  // nanoseconds
  const std::int64_t words = cells / 64 + 1;
  parallel_for(words, share(words, kWordWork, num_threads),
               [&](std::int64_t begin, std::int64_t end, int) {
                 const std::int64_t last = std::min(end * 64, cells);
                 if (support && values == nullptr) {
                   for (std::int64_t c = begin * 64; c < last; c += 64) {
                     marked_[static_cast<std::size_t>(c / 64)] =
                         last - c < 64 ? (std::uint64_t{1} << (last - c)) - 1 : ~std::uint64_t{0};
                   }
                 } else if (support) {
                   simd.mark_support(values, begin * 64, last, marked_.data());
                 } else {
                   simd.mark_weights(dtype, values, begin * 64, last, marked_.data());
                 }
               });
}

std::int64_t PlannedConv::count_marks() const {
  std::int64_t count = 0;
  for (const std::uint64_t word : marked_) count += count_bits(word);
  return count;
}

std::int64_t PlannedConv::reorder_bytes() const { return kFront + order_words_ * 64; }

/// Brings the marks of a row's cells into the order of visiting. `bytes`: reorder_bytes() of
/// memory.
void PlannedConv::reorder(const RowOfCells& row, unsigned char* bytes) {
  std::uint64_t* const taken = ordered_.data() + row.index * order_words_;
  const std::int64_t base = row.index * static_cast<std::int64_t>(rank_.size());
  const std::int64_t cells = static_cast<std::int64_t>(in_order_ ? order_.size() : rank_.size());
  const auto marks = [&](std::int64_t cell) {
    const std::uint64_t bits = bits_from(marked_.data(), base + cell);
    return cells - cell < 64 ? bits & ((std::uint64_t{1} << (cells - cell)) - 1) : bits;
  };
  if (in_order_) {
    for (std::int64_t word = 0; word < order_words_; ++word) taken[word] = marks(word * 64);
    return;
  }
  const auto for_marked = [&](const auto& function) {
    for (std::int64_t cell = 0; cell < cells; cell += 64) {
      std::uint64_t bits = marks(cell);
      for (; bits != 0; bits &= bits - 1) {
        function(rank_[static_cast<std::size_t>(cell + __builtin_ctzll(bits))]);
      }
    }
  };
  if (order_words_ == 1) {
    std::uint64_t word = 0;
    for_marked([&](std::int64_t rank) { word |= rank < 0 ? 0 : std::uint64_t{1} << rank; });
    *taken = word;
    return;
  }
  // A byte for each at first: a word of bits would wait for its last one before each next.
  std::memset(bytes, 0, static_cast<std::size_t>(reorder_bytes()));
  unsigned char* const byte = bytes + kFront;
  for_marked([&](std::int64_t rank) { byte[rank] = 1; });
  for (std::int64_t word = 0; word < order_words_; ++word) {
    std::uint64_t packed = 0;
    for (int i = 0; i < 8; ++i) {
      std::uint64_t eight;
      std::memcpy(&eight, byte + word * 64 + i * 8, sizeof(eight));
      packed |= eight * 0x0102040810204080u >> 56 << i * 8;  // the first byte is the lowest bit
    }
    taken[word] = packed;
  }
}

/// Calls function(row, destination channel) for the kernel planes of the destination channels
/// [first, last): those of a channel in the order of the source channels.
template <typename Function>
void PlannedConv::for_rows(std::int64_t first, std::int64_t last, const Function& function) const {
  const std::int64_t sources = plan_.source.channels;
  const std::int64_t dests = plan_.dest.channels;
  if (pass_ != ConvPass::kBackwardInput) {
    for (std::int64_t dest = first; dest < last; ++dest) {
      RowOfCells row{dest * sources, 0, 0};
      for (std::int64_t source = 0; source < sources; ++source, next_source(row)) {
        function(row, dest);
        ++row.index;
      }
    }
    return;
  }
  // In the order in which the kernel lies in memory.
  while (first < last) {
    const std::int64_t group = first / dests;
    const std::int64_t end = std::min(last, (group + 1) * dests);
    RowOfCells row{group * sources * dests + first % dests, 0, 0};
    for (std::int64_t source = 0; source < sources; ++source, next_source(row)) {
      for (std::int64_t dest = first; dest < end; ++dest) {
        function(row, dest);
        ++row.index;
      }
      row.index += dests - (end - first);
    }
    first = end;
  }
}

void PlannedConv::next_source(RowOfCells& row) const {
  if (++row.in_block < plan_.source_block) return;
  row.in_block = 0;
  ++row.block;
}

/// Calls visit(list, length, offset, cell) for the runs of a row.
template <typename Visit>
void PlannedConv::for_runs(const RowOfCells& row, std::int64_t dest, const Visit& visit) const {
  const std::int64_t base = row.index * static_cast<std::int64_t>(rank_.size());
  const std::uint64_t* const taken = ordered_.data() + row.index * order_words_;
  const std::int64_t planes = row.in_block * plan_.source.phase_count() * plan_.source_plane;
  const std::int64_t first_list = dest * plan_.lists_of_pair() * source_blocks_ + row.block;
  const auto flush = [&](std::int64_t at, std::int64_t length) {
    const OrderedCell* first = order_.data() + at;
    const std::int64_t list = first_list + first->phase * source_blocks_;
    while (length > kMaxRun) {  // the fewest pieces, of about equal length
      const std::int64_t pieces = (length + kMaxRun - 1) / kMaxRun;
      const int piece = pieces * kMaxRun - length < pieces ? kMaxRun : kMaxRun - 1;
      visit(list, piece, planes + first->offset, base + first->cell);
      first += piece;
      length -= piece;
    }
    visit(list, static_cast<int>(length), planes + first->offset, base + first->cell);
  };
  std::uint64_t last = 0;   // whether the last cell of the word before is taken
  std::int64_t at = 0;      // where the run begins that is open
  std::int64_t length = 0;  // of it; 0: none is
  for (std::int64_t word = 0; word < order_words_; ++word) {
    const std::uint64_t bits = taken[word];
    // Cells of the run of the cell before them.
    const std::uint64_t joined =
        bits & (bits << 1 | last) & ~starts_[static_cast<std::size_t>(word)];
    last = bits >> 63;
    if (length > 0) {
      const int more = trailing_ones(joined);
      length += more;
      if (more == 64) continue;
      flush(at, length);
      length = 0;
    }
    for (std::uint64_t heads = bits & ~joined; heads != 0; heads &= heads - 1) {
      const int head = __builtin_ctzll(heads);
      at = word * 64 + head;
      length = 1 + trailing_ones(joined >> head >> 1);
      if (head + length == 64) break;  // it may go on in the next word
      flush(at, length);
      length = 0;
    }
  }
  if (length > 0) flush(at, length);
}

/// Counts the runs of the marked cells, allocates their arrays, and calls write(slot, length,
/// offset, cell) for each.
template <typename Write>
void PlannedConv::list_runs(const std::int64_t (&run_bytes)[kMaxRun], int num_threads,
                            const Write& write) {
  const ConvPlan& p = plan_;
  order_.clear();
  starts_.clear();
  in_order_ = true;
  rank_.assign(static_cast<std::size_t>(kernel_size_[0] * kernel_size_[1] * kernel_size_[2]), -1);
  if (p.fast) {
    order_classes();
  } else {
    order_cells();
  }
  source_blocks_ = p.source_blocks();
  const std::int64_t channels = p.groups * p.dest.channels;
  const std::int64_t lists = channels * p.lists_of_pair() * p.source_blocks();
  // begin[l + 1] is where the next run of list l goes, and so in the end where list l + 1 begins.
  for (auto& begin : begin_) begin.assign(static_cast<std::size_t>(lists + 2), 0);
  // To look through the cells, and to write the runs.
  constexpr double kCellWork = 1, kMarkWork = 4;  // nanoseconds
  const auto of_channel = [&](double work) {
    return work / static_cast<double>(std::max<std::int64_t>(1, channels));
  };
  const double looking = of_channel(kCellWork * static_cast<double>(kernel_cells()));
  const double writing = of_channel(kMarkWork * static_cast<double>(count_marks()));
  order_words_ = static_cast<std::int64_t>(starts_.size());
  ordered_.assign(static_cast<std::size_t>(channels * p.source.channels * order_words_), 0);
  const Share counting = share(channels, looking, num_threads);
  const ThreadScratch bytes(reorder_bytes(), counting.threads);
  const auto count = [&](std::int64_t first, std::int64_t last, int thread) {
    for_rows(first, last, [&](const RowOfCells& row, std::int64_t dest) {
      reorder(row, static_cast<unsigned char*>(bytes.of(thread)));
      for_runs(row, dest, [&](std::int64_t list, int length, std::int64_t, std::int64_t) {
        ++begin_[length - 1][static_cast<std::size_t>(list + 2)];
      });
    });
  };
  parallel_for(channels, counting, count);
  for (int n = 0; n < kMaxRun; ++n) {
    std::vector<std::int64_t>& begin = begin_[n];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    runs_[n].reset(new std::byte[static_cast<std::size_t>(begin.back() * run_bytes[n])]);
    plan_.lists.runs[n] = runs_[n].get();
    plan_.lists.begin[n] = begin.data();
  }
  const auto fill = [&](std::int64_t first, std::int64_t last, int) {
    for_rows(first, last, [&](const RowOfCells& row, std::int64_t dest) {
      for_runs(row, dest,
               [&](std::int64_t list, int length, std::int64_t offset, std::int64_t cell) {
                 const int n = length - 1;
                 const std::int64_t at = begin_[n][static_cast<std::size_t>(list + 1)]++;
                 write(runs_[n].get() + at * run_bytes[n], length, offset, cell);
               });
    });
  };
  parallel_for(channels, share(channels, writing, num_threads), fill);
}

template <typename Storage>
void PlannedConv::list_weights_of(const Storage* kernel, int num_threads) {
  using T = Compute<Storage>;
  const std::int64_t step = run_step();
  const std::int64_t run_bytes[kMaxRun] = {sizeof(WeightRun<T, 1>), sizeof(WeightRun<T, 2>),
                                           sizeof(WeightRun<T, 3>), sizeof(WeightRun<T, 4>)};
  list_runs(run_bytes, num_threads,
            [=](std::byte* slot, int length, std::int64_t offset, std::int64_t cell) {
              const auto fill = [&](auto* run) {
                run->offset = offset;
                T zero = T(0);  // or NaN
                for (int j = 0; j < length; ++j) {
                  run->weight[j] = numeric::load(kernel[cell + j * step]);
                  zero += run->weight[j] - run->weight[j];
                }
                if (zero != zero) infinite_weights_.store(true, std::memory_order_relaxed);
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
  mark_cells(plan_.dtype, kernel, num_threads);
  if (const auto classes = spread_weights(kernel, num_threads)) {
    mark_cells(DType::kFloat32, classes.get(), num_threads);
    return list_weights_of(classes.get(), num_threads);
  }
  dispatch_dtype(plan_.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    list_weights_of(static_cast<const Storage*>(kernel), num_threads);
  });
}

void PlannedConv::list_cells(const std::uint8_t* support, int num_threads) {
  plan_.support = support;
  mark_cells(plan_.dtype, support, num_threads);
  if (const auto classes = spread_support(support, num_threads)) {
    mark_cells(plan_.dtype, classes.get(), num_threads);
  }
  choose_backward_kernel_blocks(count_marks());
  constexpr std::int64_t kBytes = sizeof(CellRun);
  list_runs({kBytes, kBytes, kBytes, kBytes}, num_threads,
            [](std::byte* slot, int, std::int64_t offset, std::int64_t cell) {
              *reinterpret_cast<CellRun*>(slot) = {offset, cell};
            });
  plan_.cell_step = run_step();
  count_unit_cells();
}

void PlannedConv::count_unit_cells() {
  const ConvPlan& p = plan_;
  const std::int64_t blocks = p.source_blocks();
  const std::int64_t units = p.group_blocks() * p.dest_blocks() * blocks;
  std::vector<std::int64_t> cells(static_cast<std::size_t>(units), 0);
  for (std::int64_t c = 0; c < p.groups * p.dest.channels; ++c) {
    const std::int64_t group = c / p.dest.channels;
    const std::int64_t unit =
        (group / p.group_block * p.dest_blocks() + c % p.dest.channels / p.dest_block) * blocks;
    for (std::int64_t i = 0; i < p.lists_of_pair() * blocks; ++i) {
      const std::size_t l = static_cast<std::size_t>(p.list_index(c, 0, 0) + i);
      for (int n = 0; n < kMaxRun; ++n) {
        cells[static_cast<std::size_t>(unit + i % blocks)] +=
            (n + 1) * (begin_[n][l + 1] - begin_[n][l]);
      }
    }
  }
  const std::int64_t most = cells.empty() ? 0 : *std::max_element(cells.begin(), cells.end());
  plan_.unit_cells = (most + kMostLanes - 1) / kMostLanes * kMostLanes;
}

}  // namespace dcls::cpu
