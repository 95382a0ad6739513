#include "cpu/cpu_backend.hpp"
#include "cpu/im2col/im2col_kernels.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls::cpu {
namespace {

const Im2colKernels& kernels() { return DCLS_OF_SIMD_LEVEL(im2col_kernels); }

/// Nanoseconds that the taps of an element take.
constexpr double kElementWork = 512;

/// The taps of a problem, evaluated.
class Table {
 public:
  Table(const Im2colKernels& simd, const Im2colArgs& args, int num_threads)
      : layout(make_layout(simd, args)), memory_(simd.table_bytes(args, layout), 1) {
    parallel_for(layout.elements, share(layout.elements, kElementWork, num_threads),
                 [&](std::int64_t begin, std::int64_t end, int) {
                   simd.fill(args, layout, memory(), begin, end);
                 });
  }
  void* memory() const { return memory_.of(0); }

  const TapLayout layout;

 private:
  static TapLayout make_layout(const Im2colKernels& simd, const Im2colArgs& args) {
    TapLayout layout{};
    simd.layout(args, &layout);
    return layout;
  }

  ThreadScratch memory_;
};

/// Nanoseconds that a plane takes, about.
double plane_work(const Im2colArgs& args, std::int64_t elements) {
  double work = 0.5 * static_cast<double>(elements);  // the outputs alone may pass 2^63
  for (int d = 0; d < args.ndim; ++d) work *= static_cast<double>(args.output_size[d]);
  return work;
}

}  // namespace

void im2col(const Im2colArgs& args, void* columns, int num_threads) {
  const Im2colKernels& simd = kernels();
  const Table table(simd, args, num_threads);
  // Too few planes for all threads: each is made several times, for a part of its elements.
  const std::int64_t planes = args.batch * args.channels;
  const std::int64_t cuts = planes / 4 < num_threads ? args.elements : 1;
  const Share shared = share(planes * cuts, plane_work(args, args.elements / cuts), num_threads);
  const ThreadScratch scratch(simd.forward_scratch(args, table.layout), shared.threads);
  parallel_for(planes * cuts, shared, [&](std::int64_t begin, std::int64_t end, int thread) {
    simd.forward(args, table.layout, table.memory(), cuts, columns, begin, end, scratch.of(thread));
  });
}

void im2col_backward(const Im2colArgs& args, const void* grad_columns, const Im2colGrads& grads,
                     int num_threads) {
  const Im2colKernels& simd = kernels();
  const Table table(simd, args, num_threads);
  const std::int64_t items = args.channels * grads.parts;
  const double work = plane_work(args, args.elements * (1 + (args.batch - 1) / grads.parts));
  const Share shared = share(items, work, num_threads);
  const ThreadScratch scratch(simd.backward_scratch(args, table.layout), shared.threads);
  parallel_for(items, shared, [&](std::int64_t begin, std::int64_t end, int thread) {
    simd.backward(args, table.layout, table.memory(), grad_columns, grads, begin, end,
                  scratch.of(thread));
  });
}

void im2col_finish(const Im2colArgs& args, const void* sums, std::int64_t parts,
                   void* grad_position, void* grad_sigma, int num_threads) {
  const Im2colKernels& simd = kernels();
  const Table table(simd, args, num_threads);
  const std::int64_t elements = table.layout.elements;
  parallel_for(elements, share(elements, kElementWork, num_threads),
               [&](std::int64_t begin, std::int64_t end, int) {
                 simd.finish(args, table.layout, table.memory(), sums, parts, grad_position,
                             grad_sigma, begin, end);
               });
}

}  // namespace dcls::cpu
