// The plan of the fast FIR algorithm: when it is less work, and the lists of its classes.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cpu/conv/conv_plan.hpp"
#include "cpu/conv/fast_fir.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

using fast_fir::kBlock, fast_fir::kClasses;

/// How many classes have a product, by which of a block's taps are there.
struct ClassesOfTaps {
  unsigned char count[1 << kBlock];
};
constexpr ClassesOfTaps make_classes_of_taps() {
  ClassesOfTaps table{};
  for (unsigned taps = 0; taps < 1u << kBlock; ++taps) {
    for (int i = 0; i < kClasses; ++i) {
      if ((fast_fir::class_of(i).taps & taps) != 0) ++table.count[taps];
    }
  }
  return table;
}
constexpr ClassesOfTaps kClassesOfTaps = make_classes_of_taps();

}  // namespace

/// Whether the fast FIR algorithm is less work. Counts the marked cells of some planes of the
/// kernel.
bool PlannedConv::is_fast_less() const {
  const ConvPlan& p = plan_;
  const std::int64_t planes = p.groups * p.source.channels * p.dest.channels;
  if (!may_be_fast_ || planes == 0) return false;
  if (p.tile[1] < DCLS_OF_SIMD_LEVEL(conv_kernels).fast_rows) return false;
  constexpr std::int64_t kSample = 12;
  const std::int64_t sample = std::min(planes, kSample);
  const std::int64_t plane_cells = kernel_size_[0] * kernel_size_[1] * kernel_size_[2];
  std::int64_t cells = 0, products = 0;
  for (std::int64_t i = 0; i < sample * kernel_size_[0]; ++i) {
    const std::int64_t plane = i / kernel_size_[0] * planes / sample;
    const std::int64_t slice =
        plane * plane_cells + i % kernel_size_[0] * kernel_size_[1] * kernel_size_[2];
    for (std::int64_t block = 0; block < p.fast_cells.blocks; ++block) {
      for (std::int64_t x = 0; x < kernel_size_[2]; ++x) {
        unsigned taps = 0;
        for (int j = 0; j < kBlock; ++j) {
          const std::int64_t row = p.fast_cells.row_of_tap[block * kBlock + j];
          if (row < 0) continue;
          const std::int64_t cell = slice + row * kernel_size_[2] + x;
          const std::uint64_t word = marked_[static_cast<std::size_t>(cell / 64)];
          taps |= static_cast<unsigned>(word >> cell % 64 & 1) << j;
        }
        cells += __builtin_popcount(taps);
        products += kClassesOfTaps.count[taps];
      }
    }
  }
  // The work of a point of the destination, in cells taken one by one. By measurement: depthwise
  // planes of 28 to 400 rows, kernels of 9x9 to 23x23. kGain: so much less, or it is not worth it.
  constexpr double kProduct = 1.05, kValue = 5, kGain = 0.92;
  const double points = static_cast<double>(p.tile[0] * p.tile[1] * p.dest_pitch);
  const double blocks =
      std::ceil(static_cast<double>(p.tile[1]) / kBlock) / static_cast<double>(p.tile[1]);
  const double source =
      static_cast<double>(p.source_extent[0] * p.source_extent[1] * p.source_pitch);
  const double values = (kBlock - 1) * source / points + kClasses * blocks;
  return kProduct * static_cast<double>(products) * blocks +
             kValue * values * static_cast<double>(sample) <
         kGain * static_cast<double>(cells);
}

/// Lays out the plan, with the fast FIR algorithm or without.
void PlannedConv::make_fast(bool fast) {
  plan_.fast = fast;
  const fast_fir::Cells& cells = plan_.fast_cells;
  kernel_size_[1] = fast ? kClasses * cells.blocks : cells.rows;
  choose_tiles();
  if (pass_ != ConvPass::kBackwardKernel) choose_forward_blocks();
}

/// order_cells for the classes. A class is a phase of the destination here; the blocks of a column
/// read rows that follow one another, a block apart.
void PlannedConv::order_classes() {
  const ConvPlan& p = plan_;
  const auto shift = [&](int d, std::int64_t cell) {
    return cells_[d].shift[static_cast<std::size_t>(cell)] - p.shift_lo[d];
  };
  std::int64_t index = 0;
  for (std::int64_t number = 0; number < kClasses; ++number) {
    for (std::int64_t z = 0; z < kernel_size_[0]; ++z) {
      for (std::int64_t x = 0; x < kernel_size_[2]; ++x) {
        const bool useful = cells_[0].useful[static_cast<std::size_t>(z)] != 0 &&
                            cells_[2].useful[static_cast<std::size_t>(x)] != 0;
        for (std::int64_t block = 0; block < p.fast_cells.blocks; ++block, ++index) {
          if (!useful) continue;
          const std::int64_t row = shift(0, z) * p.source_extent[1] + block * kBlock;
          order_cell({row * p.source_pitch + shift(2, x), index, number}, block == 0);
        }
      }
    }
  }
}

/// Calls function(taps, classes) for the blocks of all columns, see fast_fir::Cells.
template <typename Function>
void PlannedConv::for_kernel_blocks(int num_threads, const Function& function) const {
  const ConvPlan& p = plan_;
  const std::int64_t slices = p.groups * p.source.channels * p.dest.channels * kernel_size_[0];
  constexpr double kWork = 1;  // nanoseconds of a cell
  const double work = kWork * static_cast<double>(kernel_size_[1] * kernel_size_[2]);
  parallel_for(slices, share(slices, work, num_threads),
               [&](std::int64_t begin, std::int64_t end, int) {
                 for (std::int64_t slice = begin; slice < end; ++slice) {
                   p.fast_cells.for_blocks(slice, function);
                 }
               });
}

std::unique_ptr<float[]> PlannedConv::spread_weights(const void* kernel, int num_threads) {
  if (!is_fast_less()) return nullptr;
  make_fast(true);
  std::unique_ptr<float[]> spread(new float[static_cast<std::size_t>(kernel_cells())]);
  std::atomic<bool> fit{true};
  dispatch_dtype(plan_.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    if constexpr (std::is_same_v<Compute<Storage>, float>) {
      const Storage* const cells = static_cast<const Storage*>(kernel);
      for_kernel_blocks(num_threads, [&](const auto& taps, const auto& classes) {
        float tap[kBlock], of_class[kClasses];
        bool all = true;
        for (int j = 0; j < kBlock; ++j) {
          tap[j] = taps[j] < 0 ? 0.0f : numeric::load(cells[taps[j]]);
          all &= tap[j] < fast_fir::kMost && tap[j] > -fast_fir::kMost;
        }
        if (!all) fit.store(false, std::memory_order_relaxed);
        fast_fir::spread(tap, of_class);
        for (int i = 0; i < kClasses; ++i)
          spread[static_cast<std::size_t>(classes[i])] = of_class[i];
      });
    }
  });
  if (fit.load(std::memory_order_relaxed)) return spread;
  make_fast(false);
  return nullptr;
}

std::unique_ptr<std::uint8_t[]> PlannedConv::spread_support(const std::uint8_t* support,
                                                            int num_threads) {
  if (!is_fast_less()) return nullptr;
  make_fast(true);
  std::unique_ptr<std::uint8_t[]> spread(
      new std::uint8_t[static_cast<std::size_t>(kernel_cells())]);
  for_kernel_blocks(num_threads, [&](const auto& taps, const auto& classes) {
    unsigned there = 0;
    for (int j = 0; j < kBlock; ++j) {
      const bool tap = taps[j] >= 0 && (support == nullptr || support[taps[j]] != 0);
      there |= static_cast<unsigned>(tap) << j;
    }
    for (int i = 0; i < kClasses; ++i) {
      spread[static_cast<std::size_t>(classes[i])] = (fast_fir::class_of(i).taps & there) != 0;
    }
  });
  return spread;
}

}  // namespace dcls::cpu
