#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "core/conv_exact.hpp"
#include "core/conv_geometry.hpp"
#include "core/dispatch.hpp"
#include "cpu/conv/conv_kernels.hpp"
#include "cpu/conv/conv_plan.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

const ConvKernels& kernels() { return DCLS_OF_SIMD_LEVEL(conv_kernels); }

/// Whether the processor multiplies pairs of a dtype's values: see conv_pairs.hpp.
bool has_pairs(DType dtype) {
#if defined(DCLS_SIMD_X86)
  const SimdLevel level = simd_level();
  return dtype == DType::kBFloat16 &&
         (level == SimdLevel::kAvx512Bf16 || level == SimdLevel::kAvx512Bf16Of256);
#else
  static_cast<void>(dtype);
  return false;
#endif
}

const ConvPasses& passes(const PlannedConv& planned) {
#if defined(DCLS_SIMD_X86)
  SimdLevel level = simd_level();
  // Aligned and full, vectors of 512 bits are no slower, and their weights are loaded half as
  // often.
  if (planned.has_whole_rows()) {
    if (level == SimdLevel::kAvx512Of256) level = SimdLevel::kAvx512;
    if (level == SimdLevel::kAvx512Bf16Of256) level = SimdLevel::kAvx512Bf16;
  }
  const ConvPlan& plan = planned.plan();
  if (has_pairs(plan.dtype) && plan.tile[1] > 1 && !plan.fast) {
    return level == SimdLevel::kAvx512Bf16 ? avx512bf16::conv_pair_passes
                                           : avx512bf16_256::conv_pair_passes;
  }
#else
  static_cast<void>(planned);
#endif
  return DCLS_OF_LEVEL(level, conv_kernels).passes;
}

/// Calls function(passes, begin, end, scratch) for chunks of units. Returns whether all of them
/// could.
template <typename Function>
bool for_units(const PlannedConv& planned, std::int64_t units, int num_threads,
               Function&& function) {
  // Nanoseconds of a multiply-add, were all cells there.
  constexpr double kWork = 1. / 32;
  const double work = kWork * planned.dense_work() / static_cast<double>(units > 0 ? units : 1);
  const ConvPasses& simd = passes(planned);
  const Share shared = share(units, work, num_threads);
  const ThreadScratch scratch(planned.scratch_bytes(), shared.threads);
  std::atomic<bool> done{true};
  parallel_for(units, shared, [&](std::int64_t begin, std::int64_t end, int thread) {
    if (!function(simd, begin, end, scratch.of(thread))) {
      done.store(false, std::memory_order_relaxed);
    }
  });
  return done.load(std::memory_order_relaxed);
}

bool forward(const PlannedConv& planned, const void* source, const void* bias, void* dest,
             int num_threads) {
  return for_units(planned, planned.forward_units(), num_threads,
                   [&](const ConvPasses& simd, auto begin, auto end, void* own) {
                     return simd.forward(planned.plan(), source, bias, dest, begin, end, own);
                   });
}

/// The output of a convolution without an input.
void fill_with_bias(const ConvArgs& args, const void* bias, void* output) {
  const std::int64_t points = geometry::product(args.output_size, args.ndim);
  const bool last = args.layout == Layout::kChannelsLast;
  const std::int64_t run = last ? 1 : points;  // values of a channel next to each other
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    Storage* to = static_cast<Storage*>(output);
    for (std::int64_t i = 0; i < args.batch * (last ? points : 1); ++i) {
      for (std::int64_t c = 0; c < args.out_channels; ++c, to += run) {
        std::fill_n(to, run, bias == nullptr ? Storage{} : static_cast<const Storage*>(bias)[c]);
      }
    }
  });
}

/// The values of grad_input that are NaN: an infinite weight also meets the
/// zeros around grad_output.
void sum_nan_again(const ConvArgs& args, const void* grad_output, const void* kernel,
                   void* grad_input, std::int64_t values, int num_threads) {
  constexpr double kWork = 32;  // nanoseconds of a value, NaN now and then
  dispatch_dtype(args.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    Storage* const to = static_cast<Storage*>(grad_input);
    parallel_for(
        values, share(values, kWork, num_threads), [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t i = begin; i < end; ++i) {
            const auto value = numeric::load(to[i]);
            if (value == value) continue;
            numeric::store(to + i,
                           exact::input_gradient(args, static_cast<const Storage*>(grad_output),
                                                 static_cast<const Storage*>(kernel), i));
          }
        });
  });
}

/// Whether it could: always, if not `fast`. The cells that are not listed are zero already.
bool backward_kernel(const ConvArgs& args, bool fast, const void* grad_output, const void* input,
                     const std::uint8_t* support, void* grad_kernel, std::int64_t cells,
                     int num_threads) {
  PlannedConv planned(args, ConvPass::kBackwardKernel, fast);
  planned.list_cells(support, num_threads);
  const ConvPlan& plan = planned.plan();
  // Of float or double, and zero in the cells that are not listed.
  std::unique_ptr<double[]> partial;
  if (plan.splits > 1) {
    const std::size_t values = static_cast<std::size_t>(plan.splits * cells);
    partial.reset(new double[values * compute_bytes(args.dtype) / sizeof(double) + 1]());
  }
  if (!for_units(planned, planned.backward_kernel_units(), num_threads,
                 [&](const ConvPasses& simd, auto begin, auto end, void* own) {
                   return simd.backward_kernel(plan, input, grad_output, grad_kernel, partial.get(),
                                               cells, begin, end, own);
                 })) {
    return false;
  }
  if (plan.splits > 1) {
    const double work = 1 + 0.5 * static_cast<double>(plan.splits);
    const ConvKernels& simd = kernels();
    parallel_for(cells, share(cells, work, num_threads),
                 [&](std::int64_t begin, std::int64_t end, int) {
                   simd.reduce(plan, partial.get(), grad_kernel, cells, begin, end);
                 });
  }
  return true;
}

}  // namespace

void direct_conv(const ConvArgs& args, const void* input, const void* kernel, const void* bias,
                 void* output, int num_threads) {
  if (geometry::no_input(args)) return fill_with_bias(args, bias, output);
  for (const bool fast : {true, false}) {
    PlannedConv planned(args, ConvPass::kForward, fast);
    planned.list_weights(kernel, num_threads);
    if (forward(planned, input, bias, output, num_threads)) return;
  }
}

std::shared_ptr<const PlannedConv> prepare_conv(const ConvArgs& args, const void* kernel,
                                                int num_threads) {
  if (geometry::no_input(args)) return nullptr;
  auto planned = std::make_shared<PlannedConv>(args, ConvPass::kForward, true);
  planned->list_weights(kernel, num_threads);
  if (planned->plan().fast) {
    auto plain = std::make_unique<PlannedConv>(args, ConvPass::kForward, false);
    plain->list_weights(kernel, num_threads);
    planned->plain = std::move(plain);
  }
  return planned;
}

void prepared_conv(const ConvArgs& args, const PlannedConv* planned, const void* input,
                   const void* bias, void* output, int num_threads) {
  if (planned == nullptr) return fill_with_bias(args, bias, output);
  if (forward(*planned, input, bias, output, num_threads)) return;
  forward(*planned->plain, input, bias, output, num_threads);
}

void direct_conv_backward_input(const ConvArgs& args, const void* grad_output, const void* kernel,
                                void* grad_input, int num_threads) {
  const std::int64_t values =
      args.batch * args.in_channels * geometry::product(args.input_size, args.ndim);
  const std::size_t bytes = static_cast<std::size_t>(values) * storage_bytes(args.dtype);
  if (geometry::no_output(args)) {
    std::memset(grad_input, 0, bytes);
    return;
  }
  for (const bool fast : {true, false}) {
    PlannedConv planned(args, ConvPass::kBackwardInput, fast);
    if (planned.leaves_points()) std::memset(grad_input, 0, bytes);
    planned.list_weights(kernel, num_threads);
    if (!forward(planned, grad_output, nullptr, grad_input, num_threads)) continue;
    if (planned.has_infinite_weights()) {
      sum_nan_again(args, grad_output, kernel, grad_input, values, num_threads);
    }
    return;
  }
}

void direct_conv_backward_kernel(const ConvArgs& args, const void* grad_output, const void* input,
                                 const std::uint8_t* support, void* grad_kernel, int num_threads) {
  const std::int64_t cells = args.out_channels * (args.in_channels / args.groups) *
                             geometry::product(args.kernel_size, args.ndim);
  // The cells that are not listed.
  std::memset(grad_kernel, 0, static_cast<std::size_t>(cells) * storage_bytes(args.dtype));
  if (geometry::no_input(args) || geometry::no_output(args)) return;
  // Pairs are faster in this pass, by measurement.
  for (const bool fast : {!has_pairs(args.dtype), false}) {
    if (backward_kernel(args, fast, grad_output, input, support, grad_kernel, cells, num_threads)) {
      return;
    }
  }
}

void direct_conv_backward_bias(const ConvArgs& args, const void* grad_output, void* grad_bias,
                               int num_threads) {
  std::int64_t points = args.batch;
  for (int d = 0; d < args.ndim; ++d) points *= args.output_size[d];
  // Whole cache lines of channels, which the channels-last layout has side by side.
  const std::int64_t lines = (args.out_channels + kMostLanes - 1) / kMostLanes;
  const double work = 0.25 * kMostLanes * static_cast<double>(points);
  const ConvKernels& simd = kernels();  // throws where DCLS_SIMD is wrong, which nothing may inside
  parallel_for(lines, share(lines, work, num_threads),
               [&](std::int64_t begin, std::int64_t end, int) {
                 simd.backward_bias(args, grad_output, grad_bias, begin * kMostLanes,
                                    std::min(end * kMostLanes, args.out_channels));
               });
}

}  // namespace dcls::cpu
