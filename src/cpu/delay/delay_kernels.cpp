// Steps of whole delays, compiled once per instruction set.

#include "cpu/delay/delay_kernels.hpp"

#include "core/dispatch.hpp"
#include "cpu/simd/rows.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

/// Vectors of a block: the values of some hundred inputs stay in the first cache.
constexpr std::int64_t kVectors = 4;

/// Of what is on its way, as much as stays in the second cache beside the values and the weights.
constexpr std::int64_t kGroupBytes = 1 << 17;

DCLS_HD std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::int64_t columns(DType dtype, std::int64_t batch) {
  std::int64_t result = 1;
  dispatch_compute(dtype, [&](auto tag) {
    constexpr std::int64_t lanes = kLanes<typename decltype(tag)::type>;
    if (batch > 1) result = batch > lanes ? kVectors * lanes : lanes;
  });
  return result;
}

void pack(const DelayPlan& plan, const DelayTensors& tensors, std::int64_t columns, void* packed,
          std::int64_t begin, std::int64_t end) {
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    for (std::int64_t block = begin; block < end; ++block) {
      T* const to = static_cast<T*>(packed) + block * plan.inputs * columns;
      for (std::int64_t c = 0; c < columns; ++c) {
        const std::int64_t b = block * columns + c;
        const Storage* const from =
            static_cast<const Storage*>(tensors.input) + b * tensors.batch_stride;
        for (std::int64_t i = 0; i < plan.inputs; ++i) {
          to[i * columns + c] =
              b < tensors.batch ? numeric::load(from[i * tensors.input_stride]) : T(0);
        }
      }
    }
  });
}

/// Adds a bag to one column of its row. Two sums, so that an addition need not wait for the last.
template <typename Storage, typename T>
DCLS_HD void add_bag(Storage* to, const T* values, const T* weight, const std::int32_t* item,
                     std::int64_t count) {
  T even = T(0), odd = T(0);
  std::int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    even += weight[j] * values[item[j]];
    odd += weight[j + 1] * values[item[j + 1]];
  }
  if (j < count) even += weight[j] * values[item[j]];
  numeric::store(to, numeric::load(*to) + (even + odd));
}

/// Adds a bag to kCount vectors of columns. Only the first `width` columns are there.
template <std::int64_t kCount, typename Storage, typename T>
DCLS_HD void add_bag(Storage* to, const T* values, const T* weight, const std::int32_t* item,
                     std::int64_t count, std::int64_t width) {
  constexpr std::int64_t lanes = kLanes<T>;
  Vector<T> even[kCount] = {}, odd[kCount] = {};
  const auto add = [&](Vector<T>(&sum)[kCount], std::int64_t j) {
    const T* const from = values + item[j] * (kCount * lanes);
    for (std::int64_t v = 0; v < kCount; ++v) sum[v] += weight[j] * load_vector(from + v * lanes);
  };
  std::int64_t j = 0;
  for (; j + 2 <= count; j += 2) {
    add(even, j);
    add(odd, j + 1);
  }
  if (j < count) add(even, j);
  for (std::int64_t v = 0; v < kCount; ++v) {
    const std::int64_t there = width - v * lanes;
    if (there <= 0) break;
    store_some(to + v * lanes, load_some(to + v * lanes, there) + (even[v] + odd[v]), there);
  }
}

/// Adds the bags of a chunk and a step to a block of kCount vectors of columns, or to one column
/// for 0. `to` is the first row of that step at the first column.
template <std::int64_t kCount, typename Storage>
DCLS_HD void add_bags(const DelayPlan& plan, std::int64_t place, const Compute<Storage>* values,
                      Storage* to, std::int64_t batch, std::int64_t width) {
  using T = Compute<Storage>;
  const DelayPlan::Bag* bag = plan.bags.data() + plan.first[static_cast<std::size_t>(place)];
  const DelayPlan::Bag* const stop =
      plan.bags.data() + plan.first[static_cast<std::size_t>(place + 1)];
  if (bag == stop) return;
  const T* weight = reinterpret_cast<const T*>(plan.weight.data()) + bag->begin;
  const std::int32_t* item = plan.item.data() + bag->begin;
  for (; bag < stop; ++bag) {
    const std::int64_t count = bag[1].begin - bag->begin;
    Storage* const row = to + bag->row * batch;
    if constexpr (kCount == 0) {
      add_bag(row, values, weight, item, count);
    } else {
      add_bag<kCount>(row, values, weight, item, count, width);
    }
    item += count;
    weight += count;
  }
}

/// Computes a chunk of rows. All that arrives at some steps is moved up, then added to while it is
/// in the second cache. The earlier steps come first: next_state may be the memory of the state.
template <std::int64_t kCount, typename Storage>
DCLS_HD void run_chunk(const DelayPlan& plan, const DelayTensors& tensors, const void* packed,
                       std::int64_t chunk) {
  using T = Compute<Storage>;
  constexpr std::int64_t columns = kCount > 0 ? kCount * kLanes<T> : 1;
  const std::int64_t first = chunk * DelayPlan::kRows;
  const std::int64_t size = smaller(plan.rows - first, DelayPlan::kRows) * tensors.batch;
  const std::int64_t plane = plan.rows * tensors.batch, offset = first * tensors.batch;
  const Storage* const state = static_cast<const Storage*>(tensors.state);
  const auto pending = [&](std::int64_t t) {
    return (t == 0 ? static_cast<Storage*>(tensors.arriving)
                   : static_cast<Storage*>(tensors.next_state) + (t - 1) * plane) +
           offset;
  };
  const std::int64_t bytes = size * static_cast<std::int64_t>(sizeof(Storage));
  const std::int64_t group = 1 + kGroupBytes / bytes;
  for (std::int64_t begin = 0; begin < plan.steps; begin += group) {
    const std::int64_t end = smaller(begin + group, plan.steps);
    for (std::int64_t t = begin; t < end; ++t) {
      if (t + 1 < plan.steps) {
        memmove(pending(t), state + t * plane + offset, static_cast<std::size_t>(bytes));
      } else {
        memset(pending(t), 0, static_cast<std::size_t>(bytes));
      }
    }
    const T* values = static_cast<const T*>(packed);
    for (std::int64_t column = 0; column < tensors.batch; column += columns) {
      for (std::int64_t t = begin; t < end; ++t) {
        add_bags<kCount>(plan, chunk * plan.steps + t, values, pending(t) + column, tensors.batch,
                         tensors.batch - column);
      }
      values += plan.inputs * columns;
    }
  }
}

void run(const DelayPlan& plan, const DelayTensors& tensors, std::int64_t columns,
         const void* packed, std::int64_t begin, std::int64_t end) {
  dispatch_dtype(plan.dtype, [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      if (columns == 1) {
        run_chunk<0, Storage>(plan, tensors, packed, chunk);
      } else if (columns == kLanes<Compute<Storage>>) {
        run_chunk<1, Storage>(plan, tensors, packed, chunk);
      } else {
        run_chunk<kVectors, Storage>(plan, tensors, packed, chunk);
      }
    }
  });
}

}  // namespace

const DelayKernels delay_kernels = {&columns, &pack, &run};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
