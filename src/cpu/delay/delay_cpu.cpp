#include <algorithm>
#include <utility>

#include "core/dispatch.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/delay/delay_kernels.hpp"
#include "cpu/delay/delay_plan.hpp"
#include "cpu/runtime/features.hpp"
#include "cpu/runtime/parallel.hpp"

namespace dcls {

DelayPlan::DelayPlan(const DelayArgs& args)
    : dtype(args.dtype), steps(args.steps), rows(args.rows), inputs(args.inputs) {
  const auto count = static_cast<std::size_t>(rows * args.elements);
  // How many connections a bag has, by (row, step), and then where its next one goes.
  std::vector<std::int32_t> next(static_cast<std::size_t>(rows * steps), 0);
  const auto at = [&](std::int64_t r, std::int64_t t) {
    return static_cast<std::size_t>(r * steps + t);
  };
  const auto element = [&](std::int64_t r, std::int64_t j) { return r * args.elements + j; };
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < args.elements; ++j) ++next[at(r, args.delay[element(r, j)])];
  }
  std::int32_t connections = 0;
  std::vector<std::int64_t> filled;
  for (std::int64_t start = 0; start < rows; start += kRows) {
    for (std::int64_t t = 0; t < steps; ++t) {
      first.push_back(static_cast<std::int32_t>(bags.size()));
      filled.clear();
      for (std::int64_t r = start; r < std::min(start + kRows, rows); ++r) {
        if (next[at(r, t)] > 0) filled.push_back(r);
      }
      std::sort(filled.begin(), filled.end(), [&](std::int64_t a, std::int64_t b) {
        return std::make_pair(next[at(a, t)], a) < std::make_pair(next[at(b, t)], b);
      });
      for (const std::int64_t r : filled) {
        bags.push_back({static_cast<std::int32_t>(r - start), connections});
        connections += std::exchange(next[at(r, t)], connections);
      }
    }
  }
  first.push_back(static_cast<std::int32_t>(bags.size()));
  bags.push_back({0, connections});
  item.resize(count);
  dispatch_dtype(dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    weight.resize(count * sizeof(Compute<Storage>));
    auto* const to = reinterpret_cast<Compute<Storage>*>(weight.data());
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t j = 0; j < args.elements; ++j) {
        const std::int64_t from = element(r, j);
        const std::int32_t place = next[at(r, args.delay[from])]++;
        item[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(args.item[from]);
        to[place] = numeric::load(static_cast<const Storage*>(args.weight)[from]);
      }
    }
  });
}

void cpu::delay_step(const DelayPlan& plan, const DelayTensors& tensors, int num_threads) {
  const DelayKernels& simd = DCLS_OF_SIMD_LEVEL(delay_kernels);
  const std::int64_t columns = simd.columns(plan.dtype, tensors.batch);
  const std::int64_t blocks = (tensors.batch + columns - 1) / columns;
  const std::int64_t values = plan.inputs * columns;
  const ThreadScratch packed(blocks * values * static_cast<std::int64_t>(compute_bytes(plan.dtype)),
                             1);
  const auto spread = [&](std::int64_t count, std::int64_t work, const auto& function) {
    constexpr double kWork = 2;  // nanoseconds
    parallel_for(count, share(count, kWork * static_cast<double>(1 + work), num_threads),
                 [&](std::int64_t begin, std::int64_t end, int) { function(begin, end); });
  };
  spread(blocks, values, [&](std::int64_t begin, std::int64_t end) {
    simd.pack(plan, tensors, columns, packed.of(0), begin, end);
  });
  const std::int64_t chunks = (plan.rows + DelayPlan::kRows - 1) / DelayPlan::kRows;
  const auto connections = static_cast<std::int64_t>(plan.item.size());
  const std::int64_t work = (connections + plan.steps * plan.rows / 8) * blocks / chunks;
  spread(chunks, work, [&](std::int64_t begin, std::int64_t end) {
    simd.run(plan, tensors, columns, packed.of(0), begin, end);
  });
}

}  // namespace dcls
