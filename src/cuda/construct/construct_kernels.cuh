#pragma once

// The construct operator on CUDA. Both kernels gather: each output is computed by one thread or one
// group of lanes in a fixed order, so that results are deterministic, and nothing is ever atomic.

#include <cstddef>
#include <cstdint>

#include "core/dtype.hpp"
#include "cuda/runtime/primitives.cuh"
#include "dcls/construct.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::cuda {

using interp::Contraction;
using interp::Element;
using interp::Support;
using interp::Tap;

// ------------------------------------------------------------------------------------- forward

inline constexpr int kForwardThreads = 256;
inline constexpr int kCellsPerThread = 4;
inline constexpr int kTileCells = kForwardThreads * kCellsPerThread;
/// Values of shared memory for taps and scales: 16 KiB in float32, 32 KiB in float64.
inline constexpr int kSharedValues = 4096;
/// Lanes that sum an element's taps over an axis.
inline constexpr int kSumLanes = 8;

/// How the forward kernel cuts the problem: a block builds one box of cells for a few rows, with
/// the taps of a chunk of elements in shared memory at a time.
struct ForwardPlan {
  std::int64_t items;          ///< row groups times boxes
  std::int64_t boxes;          ///< boxes of cells in a row
  std::int64_t grid_boxes[3];  ///< boxes along each axis
  int box[3];                  ///< cells of a box along each axis
  int box_cells;
  int entries;  ///< taps of an element in a box: the sum of box[]
  int rows;     ///< rows of a block
  int chunk;    ///< elements of a row in shared memory at a time

  std::size_t shared_values() const {
    return static_cast<std::size_t>(rows) * static_cast<std::size_t>(chunk) *
           static_cast<std::size_t>(entries + 1);
  }
};

inline ForwardPlan make_forward_plan(const ConstructArgs& args) {
  ForwardPlan plan{};
  plan.boxes = 1;
  plan.box_cells = 1;
  for (int d = args.ndim - 1; d >= 0; --d) {
    const std::int64_t room = kTileCells / plan.box_cells;
    plan.box[d] = static_cast<int>(args.size[d] < room ? args.size[d] : room);
    plan.grid_boxes[d] = (args.size[d] + plan.box[d] - 1) / plan.box[d];
    plan.boxes *= plan.grid_boxes[d];
    plan.box_cells *= plan.box[d];
    plan.entries += plan.box[d];
  }
  plan.rows = plan.boxes > 1 ? 1 : kTileCells / plan.box_cells;
  if (plan.rows > args.rows) plan.rows = static_cast<int>(args.rows);
  // A row's element needs `entries` taps and one scale. The least case, one element of each row,
  // fits: rows * (entries + 1) <= kTileCells * (ndim + 1) = kSharedValues.
  static_assert(kTileCells * (kMaxDims + 1) <= kSharedValues, "one element a row must fit");
  const std::int64_t most = kSharedValues / (plan.rows * (plan.entries + 1));
  plan.chunk = static_cast<int>(args.elements < most ? args.elements : most);
  plan.items = (args.rows + plan.rows - 1) / plan.rows * plan.boxes;
  return plan;
}

/// values[d] for a run-time d, by selection: an indexed array would live in local memory.
template <int D, typename T, int N>
__device__ __forceinline__ T pick(const T (&values)[N], int d) {
  T value = values[0];
#pragma unroll
  for (int i = 1; i < D; ++i) value = d == i ? values[i] : value;
  return value;
}

/// Loads element `index` (0 <= index < rows * elements) on axis `d`, which has `size` points.
template <typename Storage>
__device__ __forceinline__ Element<Compute<Storage>> load_element(const ConstructArgs& args, int d,
                                                                  std::int64_t size,
                                                                  std::int64_t index) {
  using T = Compute<Storage>;
  const std::int64_t at = d * args.rows * args.elements + index;
  const T position = numeric::load(static_cast<const Storage*>(args.position)[at]);
  const T sigma =
      args.sigma != nullptr ? numeric::load(static_cast<const Storage*>(args.sigma)[at]) : T(0);
  return interp::make_element<T>(position, sigma, static_cast<T>(args.sigma_min), size);
}

template <typename Storage, int D>
__global__ void __launch_bounds__(kForwardThreads)
    construct_forward(const ConstructArgs args, const ForwardPlan plan, void* kernel) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  Storage* const out = static_cast<Storage*>(kernel);
  const bool normalised = interp::is_normalised(args.version);
  const int thread = static_cast<int>(threadIdx.x);
  const int stride = plan.entries + 1;
  T* const shared = dynamic_shared<T>();

  for (std::int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {
    const std::int64_t row_begin = item / plan.boxes * plan.rows;
    const int rows =
        static_cast<int>(args.rows - row_begin < plan.rows ? args.rows - row_begin : plan.rows);
    std::int64_t origin[D];
    std::int64_t rest = item % plan.boxes;
#pragma unroll
    for (int d = D - 1; d >= 0; --d) {
      origin[d] = rest % plan.grid_boxes[d] * plan.box[d];
      rest /= plan.grid_boxes[d];
    }

    // This thread's cells: row, place of their taps in an element's entries, place in the output.
    T sum[kCellsPerThread];
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
        const Element<T> e = load_element<Storage>(args, d, pick<D>(args.size, d), index);
        const T at = static_cast<T>(pick<D>(origin, d) + x);
        T value = T(0);
        interp::visit(args.version,
                      [&](auto v) { value = interp::evaluate<v.value>(e, at).value; });
        shared[pair * stride + i % plan.entries] = value;
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
            const Element<T> e = load_element<Storage>(args, d, args.size[d], index);
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
      }
    }
#pragma unroll
    for (int i = 0; i < kCellsPerThread; ++i) {
      if (target[i] >= 0) numeric::store(out + target[i], numeric::flush_subnormal(sum[i]));
    }
  }
}

// ------------------------------------------------------------------------------------ backward

inline constexpr int kBackwardThreads = 128;
/// Lanes that share one element: they split the last axis.
inline constexpr int kGroupLanes = 8;
inline constexpr int kBackwardGroups = kBackwardThreads / kGroupLanes;
/// Values of shared memory for the taps of all axes but the last: at most 48 KiB in float64.
inline constexpr int kBackwardShared = 6144;

/// The taps of the axes but the last, in shared memory where they fit and evaluated again at each
/// use where they do not.
struct BackwardPlan {
  std::int64_t items;  ///< rows * elements
  int entries;         ///< taps in shared memory per element; 0 for none

  std::size_t shared_values() const {
    return 3 * static_cast<std::size_t>(kBackwardGroups) * static_cast<std::size_t>(entries);
  }
};

inline BackwardPlan make_backward_plan(const ConstructArgs& args) {
  BackwardPlan plan{};
  plan.items = args.rows * args.elements;
  std::int64_t entries = 0;
  for (int d = 0; d < args.ndim - 1; ++d) entries += args.size[d];
  const bool fits = entries * 3 * kBackwardGroups <= kBackwardShared;
  plan.entries = fits ? static_cast<int>(entries) : 0;
  return plan;
}

/// One axis of one element: taps at grid points, from shared memory or computed.
template <typename T>
struct AxisReader {
  Element<T> element;
  Support support;
  Version version;
  const T* stored;  ///< value, d_position, d_sigma of each grid point; null to compute

  __device__ __forceinline__ Tap<T> compute(std::int64_t x) const {
    Tap<T> tap{};
    interp::visit(version,
                  [&](auto v) { tap = interp::evaluate<v.value>(element, static_cast<T>(x)); });
    return tap;
  }
  __device__ __forceinline__ Tap<T> operator()(std::int64_t x) const {
    if (stored == nullptr) return compute(x);
    const T* const at = stored + 3 * x;
    return {at[0], at[1], at[2]};
  }
};

template <typename T>
__device__ __forceinline__ void add_product(Tap<T>& sum, const Tap<T>& tap, T factor) {
  sum.value += tap.value * factor;
  sum.d_position += tap.d_position * factor;
  sum.d_sigma += tap.d_sigma * factor;
}

/// Adds tap (of the axis `axis`) times the contraction `inner` of the axes before it to `sum`.
template <typename T, int D>
__device__ __forceinline__ void add_axis(Contraction<T, D>& sum, int axis, const Tap<T>& tap,
                                         const Contraction<T, D>& inner) {
  sum.value += tap.value * inner.value;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    if (d == axis) {
      sum.d_position[d] += tap.d_position * inner.value;
      sum.d_sigma[d] += tap.d_sigma * inner.value;
    } else {
      sum.d_position[d] += tap.value * inner.d_position[d];
      sum.d_sigma[d] += tap.value * inner.d_sigma[d];
    }
  }
}

/// Contracts the axes from kAxis to the last but one at one point of the last axis. `grad` is at
/// that point of the last axis, `stride` the distance between neighbours on the axis before it.
template <int kAxis, typename Storage, typename T, int D>
__device__ __forceinline__ Contraction<T, D> contract(const AxisReader<T> (&axes)[D],
                                                      const Storage* grad,
                                                      const std::int64_t (&strides)[D]) {
  Contraction<T, D> sum{};
  if constexpr (kAxis == D - 1) {
    sum.value = numeric::load(*grad);
  } else {
    for (std::int64_t x = axes[kAxis].support.lo; x < axes[kAxis].support.hi; ++x) {
      const Contraction<T, D> inner =
          contract<kAxis + 1, Storage, T, D>(axes, grad + x * strides[kAxis], strides);
      add_axis<T, D>(sum, kAxis, axes[kAxis](x), inner);
    }
  }
  return sum;
}

template <typename Storage, int D>
__global__ void __launch_bounds__(kBackwardThreads)
    construct_backward(const ConstructArgs args, const BackwardPlan plan, const void* grad_kernel,
                       const ConstructGrads grads) {
  using T = Compute<Storage>;
  const Storage* const weight = static_cast<const Storage*>(args.weight);
  const Storage* const sigma = static_cast<const Storage*>(args.sigma);
  const bool normalised = interp::is_normalised(args.version);
  const int group = static_cast<int>(threadIdx.x) / kGroupLanes;
  const int lane = static_cast<int>(threadIdx.x) % kGroupLanes;
  T* const stored = plan.entries > 0 ? dynamic_shared<T>() + 3 * group * plan.entries : nullptr;

  std::int64_t strides[D];
  std::int64_t cells = 1;
#pragma unroll
  for (int d = D - 1; d >= 0; --d) {
    strides[d] = cells;
    cells *= args.size[d];
  }

  // The trip count is that of the whole block: every lane takes part in the sums.
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kBackwardGroups;
       first < plan.items; first += static_cast<std::int64_t>(gridDim.x) * kBackwardGroups) {
    const std::int64_t index = first + group;
    const bool active = index < plan.items;
    AxisReader<T> axes[D];
    Tap<T> sums[D];
    Element<T> elements[D] = {};
    if (active) {
#pragma unroll
      for (int d = 0; d < D; ++d) {
        elements[d] = load_element<Storage>(args, d, args.size[d], index);
      }
      interp::spread_nan(elements);
    }
    int offset = 0;
    __syncwarp();  // the taps of the last element have been read
#pragma unroll
    for (int d = 0; d < D; ++d) {
      axes[d].element = elements[d];
      axes[d].version = args.version;
      axes[d].support = {0, 0};
      T* const keep = d < D - 1 && stored != nullptr ? stored + 3 * offset : nullptr;
      axes[d].stored = keep;
      offset += static_cast<int>(args.size[d]);
      Tap<T> part{};
      if (active) {
        interp::visit(args.version, [&](auto v) {
          axes[d].support = interp::support<v.value>(axes[d].element, args.size[d]);
        });
        for (std::int64_t x = axes[d].support.lo + lane; x < axes[d].support.hi; x += kGroupLanes) {
          const Tap<T> tap = axes[d].compute(x);
          add_product(part, tap, T(1));
          if (keep != nullptr) {
            T* const at = keep + 3 * x;
            at[0] = tap.value;
            at[1] = tap.d_position;
            at[2] = tap.d_sigma;
          }
        }
      }
      sums[d].value = group_sum<kGroupLanes>(part.value);
      sums[d].d_position = group_sum<kGroupLanes>(part.d_position);
      sums[d].d_sigma = group_sum<kGroupLanes>(part.d_sigma);
    }
    __syncwarp();

    Contraction<T, D> c{};
    if (active) {
      const Storage* const grad =
          static_cast<const Storage*>(grad_kernel) + index / args.elements * cells;
      const AxisReader<T>& last = axes[D - 1];
      for (std::int64_t x = last.support.lo + lane; x < last.support.hi; x += kGroupLanes) {
        const Contraction<T, D> inner = contract<0, Storage, T, D>(axes, grad + x, strides);
        add_axis<T, D>(c, D - 1, last.compute(x), inner);
      }
    }
    c.value = group_sum<kGroupLanes>(c.value);
#pragma unroll
    for (int d = 0; d < D; ++d) {
      c.d_position[d] = group_sum<kGroupLanes>(c.d_position[d]);
      c.d_sigma[d] = group_sum<kGroupLanes>(c.d_sigma[d]);
    }
    if (!active || lane != 0) continue;

    interp::finish_gradient<T, D>(c, sums, numeric::load(weight[index]), normalised);
    if (grads.weight != nullptr) {
      numeric::store(static_cast<Storage*>(grads.weight) + index, c.value);
    }
#pragma unroll
    for (int d = 0; d < D; ++d) {
      const std::int64_t at = d * plan.items + index;
      if (grads.position != nullptr) {
        numeric::store(static_cast<Storage*>(grads.position) + at, c.d_position[d]);
      }
      if (grads.sigma != nullptr) {
        const T slope = interp::sigma_slope<T>(numeric::load(sigma[at]));
        numeric::store(static_cast<Storage*>(grads.sigma) + at, c.d_sigma[d] * slope);
      }
    }
  }
}

}  // namespace dcls::cuda
