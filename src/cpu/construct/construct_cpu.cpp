#include "cpu/construct/construct_kernels.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

const ConstructKernels& kernels() { return DCLS_OF_SIMD_LEVEL(construct_kernels); }

/// Nanoseconds that a row takes, about.
double row_work(const ConstructArgs& args) {
  std::int64_t cells = 1;
  for (int d = 0; d < args.ndim; ++d) cells *= args.size[d];
  return static_cast<double>(cells + 32 * args.elements);
}

/// Calls function(kernels, begin, end, scratch) for chunks of rows.
template <typename Function>
void for_rows(const ConstructArgs& args, int num_threads, Function&& function) {
  const ConstructKernels& simd = kernels();
  const Share rows = share(args.rows, row_work(args), num_threads);
  const ThreadScratch scratch(simd.scratch_bytes(args), rows.threads);
  parallel_for(args.rows, rows, [&](std::int64_t begin, std::int64_t end, int thread) {
    function(simd, begin, end, scratch.of(thread));
  });
}

}  // namespace

void construct(const ConstructArgs& args, void* kernel, std::uint8_t* support, int num_threads) {
  for_rows(args, num_threads, [&](const ConstructKernels& simd, auto begin, auto end, void* own) {
    simd.forward(args, kernel, support, begin, end, own);
  });
}

void construct_backward(const ConstructArgs& args, const void* grad_kernel,
                        const ConstructGrads& grads, int num_threads) {
  for_rows(args, num_threads, [&](const ConstructKernels& simd, auto begin, auto end, void* own) {
    simd.backward(args, grad_kernel, grads, begin, end, own);
  });
}

}  // namespace dcls::cpu
