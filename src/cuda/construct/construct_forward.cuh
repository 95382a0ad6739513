#pragma once

// The construct operator on CUDA. This kernel and that of the gradients gather: each output is
// computed by one thread or one group of lanes in a fixed order, so that results are deterministic,
// and nothing is ever atomic.

#include <cstdint>

#include "cuda/construct/construct_elements.cuh"
#include "cuda/construct/construct_plan.hpp"

namespace dcls::cuda {

/// Builds the cells of box `box` of the `rows` rows from `row_begin` on, and calls write(cell,
/// value, marked) for each, counted from the first cell of all rows. All threads of the block take
/// part.
///
/// @tparam kMark Whether `marked` tells the support, if `lacks` is not null: room for
///               lacks_tap() of all that is in `shared` at a time. A position that is not finite
///               then marks its whole row.
/// @param shared Room for plan.shared_values() taps and scales.
template <typename Storage, int D, bool kMark, typename Write>
__device__ __forceinline__ void build_box(const ConstructArgs& args, const ForwardPlan& plan,
                                          std::int64_t row_begin, int rows, std::int64_t box,
                                          Compute<Storage>* shared, std::uint8_t* lacks,
                                          const Write& write) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  const bool normalised = interp::is_normalised(args.version);
  const bool mark = kMark && lacks != nullptr;
  const int thread = static_cast<int>(threadIdx.x);
  const int stride = plan.entries + 1;
  std::int64_t origin[D];
#pragma unroll
  for (int d = D - 1; d >= 0; --d) {
    origin[d] = box % plan.grid_boxes[d] * plan.box[d];
    box /= plan.grid_boxes[d];
  }

  // This thread's cells: row, place of their taps in an element's entries, place in the output.
  T sum[kCellsPerThread];
  unsigned marked = 0;  // a bit for each
  int cell_row[kCellsPerThread];
  int entry[kCellsPerThread][D];
  std::int64_t target[kCellsPerThread];
#pragma unroll
  for (int i = 0; i < kCellsPerThread; ++i) {
    const int j = thread + i * kForwardThreads;
    sum[i] = T(0);
    cell_row[i] = j / plan.box_cells;
    int local = j % plan.box_cells;
    int offset = plan.entries;
    std::int64_t cell = 0;
    std::int64_t pitch = 1;
    bool inside = cell_row[i] < rows;
#pragma unroll
    for (int d = D - 1; d >= 0; --d) {
      const int x = local % plan.box[d];
      local /= plan.box[d];
      offset -= plan.box[d];
      entry[i][d] = offset + x;
      inside = inside && origin[d] + x < args.size[d];
      cell += (origin[d] + x) * pitch;
      pitch *= args.size[d];
    }
    target[i] = inside ? (row_begin + cell_row[i]) * pitch + cell : -1;
  }

  for (std::int64_t k0 = 0; k0 < args.elements; k0 += plan.chunk) {
    const int chunk =
        static_cast<int>(args.elements - k0 < plan.chunk ? args.elements - k0 : plan.chunk);
    const int pairs = rows * chunk;  // (row, element), the element fastest
    __syncthreads();                 // the taps of the last chunk have been read
    for (int i = thread; i < pairs * plan.entries; i += kForwardThreads) {
      const int pair = i / plan.entries;
      int x = i % plan.entries;
      int d = 0;
#pragma unroll
      for (int axis = 0; axis < D - 1; ++axis) {
        if (d == axis && x >= plan.box[axis]) {
          x -= plan.box[axis];
          d = axis + 1;
        }
      }
      const std::int64_t index = (row_begin + pair / chunk) * args.elements + k0 + pair % chunk;
      Element<T> e = load_element<Storage, D>(args, d, pick<D>(args.size, d), index);
      if (mark) e.p += position_poison<Storage, D>(args, index);
      const T at = static_cast<T>(pick<D>(origin, d) + x);
      const Tap<T> tap = evaluate_tap(args.version, e, at);
      shared[pair * stride + i % plan.entries] = tap.value;
      if (mark) lacks[i] = static_cast<std::uint8_t>(lacks_tap(tap));
    }
    // Scales. Whole groups of lanes sum one pair; the trip count is the same in all threads.
    const int group = thread / kSumLanes;
    const int lane = thread % kSumLanes;
    constexpr int kGroups = kForwardThreads / kSumLanes;
    for (int first = 0; first < pairs; first += kGroups) {
      const int pair = first + group;
      const bool active = pair < pairs;
      const std::int64_t index =
          active ? (row_begin + pair / chunk) * args.elements + k0 + pair % chunk : 0;
      Tap<T> sums[D];
#pragma unroll
      for (int d = 0; d < D; ++d) {
        T part = T(0);
        if (active && normalised) {
          const Element<T> e = load_element<Storage, D>(args, d, args.size[d], index);
          interp::visit(args.version, [&](auto v) {
            const Support s = interp::support<v.value>(e, args.size[d]);
            for (std::int64_t x = s.lo + lane; x < s.hi; x += kSumLanes) {
              part += interp::evaluate<v.value>(e, static_cast<T>(x)).value;
            }
          });
        }
        sums[d].value = group_sum<kSumLanes>(part);
      }
      if (active && lane == 0) {
        shared[pair * stride + plan.entries] =
            numeric::load(weight[index]) * interp::inverse_norm<T, D>(sums, normalised);
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      if (target[i] < 0) continue;
      const T* element = shared + cell_row[i] * chunk * stride;
      for (int k = 0; k < chunk; ++k, element += stride) {
        T term = element[plan.entries];
#pragma unroll
        for (int d = 0; d < D; ++d) term *= element[entry[i][d]];
        sum[i] += term;
      }
      if (!mark) continue;
      const std::uint8_t* of_element = lacks + cell_row[i] * chunk * plan.entries;
      for (int k = 0; k < chunk; ++k, of_element += plan.entries) {
        int missing = 0;
#pragma unroll
        for (int d = 0; d < D; ++d) missing += of_element[entry[i][d]];
        if (missing <= 1) marked |= 1u << i;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kCellsPerThread; ++i) {
    if (target[i] >= 0) write(target[i], numeric::flush_subnormal(sum[i]), (marked >> i & 1u) != 0);
  }
}

template <typename Storage, int D>
__global__ void __launch_bounds__(kForwardThreads)
    construct_forward(const ConstructArgs args, const ForwardPlan plan, void* kernel) {
  using T = Compute<Storage>;
  Storage* const out = static_cast<Storage*>(kernel);
  for (std::int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {
    const std::int64_t row_begin = item / plan.boxes * plan.rows;
    const int rows =
        static_cast<int>(args.rows - row_begin < plan.rows ? args.rows - row_begin : plan.rows);
    build_box<Storage, D, false>(
        args, plan, row_begin, rows, item % plan.boxes, dynamic_shared<T>(), nullptr,
        [&](std::int64_t cell, T value, bool) { numeric::store(out + cell, value); });
  }
}

}  // namespace dcls::cuda
