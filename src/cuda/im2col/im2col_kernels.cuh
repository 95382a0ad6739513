#pragma once

// The im2col operator on CUDA. All kernels gather: each output is computed by one thread, or one
// block, in a fixed order, so that results are deterministic, and nothing is ever atomic. The taps
// of all elements are evaluated first, into the caller's workspace.

#include <cstdint>

#include "core/conv_geometry.hpp"
#include "core/dtype.hpp"
#include "cuda/construct/construct_elements.cuh"
#include "cuda/runtime/primitives.cuh"
#include "dcls/im2col.hpp"
#include "interpolation/interpolation.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cuda {

inline constexpr int kIm2colThreads = 256;
/// Warps of a block that sum.
inline constexpr int kSumWarps = kIm2colThreads / 32;

inline std::int64_t blocks_of(std::int64_t items) {
  return (items + kIm2colThreads - 1) / kIm2colThreads;
}

/// Blocks of a kernel whose blocks have a tile of points of one plane each.
struct PlanePlan {
  std::int64_t points;  ///< of a plane
  std::int64_t tiles;   ///< of a plane
  std::int64_t items;   ///< tiles of all planes
};
inline PlanePlan make_plane_plan(const Im2colArgs& args, const std::int64_t (&sizes)[kMaxDims]) {
  PlanePlan plan{};
  plan.points = geometry::product(sizes, args.ndim);
  plan.tiles = blocks_of(plan.points);
  plan.items = args.batch * args.channels * plan.tiles;
  return plan;
}

/// The terms along one axis of an interpolation: taps times data, both at steps of their own.
template <typename T>
struct Walk {
  const T* taps;
  std::int64_t cap;  ///< distance to the taps' derivatives
  std::int64_t tap_step;
  std::int64_t count;
  std::int64_t data;  ///< first point of the data
  int data_step;
};

/// From the grid points of axis `d` to the points of the input that output `o` reaches.
template <int D, typename T>
__device__ __forceinline__ Walk<T> walk_to_input(const Im2colArgs& args, const TapTable<T>& table,
                                                 std::int64_t element, int d, std::int64_t o) {
  const TapRange range = tap_table::range<D>(table, element, d);
  const std::int64_t origin = o * args.stride[d] - args.padding[d];
  const std::int64_t lo = range.lo > -origin ? range.lo : -origin;
  const std::int64_t room = args.input_size[d] - origin;
  const std::int64_t hi = range.hi < room ? range.hi : room;
  return {tap_table::axis(table, element, d) + (lo - range.base),
          table.layout.cap[d],
          1,
          hi - lo,
          origin + lo,
          1};
}

/// From the grid points of axis `d` to the outputs that reach the point `at` of the input.
template <int D, typename T>
__device__ __forceinline__ Walk<T> walk_to_outputs(const Im2colArgs& args, const TapTable<T>& table,
                                                   std::int64_t element, int d, std::int64_t at) {
  const TapRange range = tap_table::range<D>(table, element, d);
  const std::int64_t stride = args.stride[d];
  // Output o reaches it through grid point x = place - o * stride: x rises by strides as o falls.
  const std::int64_t place = at + args.padding[d];
  const std::int64_t least = place - (args.output_size[d] - 1) * stride;
  std::int64_t x = range.lo > least ? range.lo : least;
  if (stride != 1) x += ((place - x) % stride + stride) % stride;
  const std::int64_t end = range.hi < place + 1 ? range.hi : place + 1;
  const std::int64_t count = x < end ? (end - x + stride - 1) / stride : 0;
  return {tap_table::axis(table, element, d) + (x - range.base),
          table.layout.cap[d],
          stride,
          count,
          (place - x) / stride,
          -1};
}

/// Sum over the axes from kAxis on of the taps times the data; `pitch` are the data's strides.
template <int kAxis, int D, typename Storage, typename T>
__device__ __forceinline__ T weigh(const Walk<T> (&walks)[D], const Storage* data,
                                   const std::int64_t (&pitch)[D]) {
  const Walk<T>& walk = walks[kAxis];
  const std::int64_t step = walk.data_step * pitch[kAxis];
  std::int64_t at = walk.data * pitch[kAxis];
  const T* tap = walk.taps;
  T sum = T(0);
  for (std::int64_t t = 0; t < walk.count; ++t, at += step, tap += walk.tap_step) {
    if constexpr (kAxis == D - 1) {
      sum += *tap * numeric::load(data[at]);
    } else {
      sum += *tap * weigh<kAxis + 1, D>(walks, data + at, pitch);
    }
  }
  return sum;
}

/// The same, and with the taps of each axis replaced by their derivatives.
template <int kAxis, int D, typename Storage, typename T>
__device__ __forceinline__ Contraction<T, D> weigh_derivatives(const Walk<T> (&walks)[D],
                                                               const Storage* data,
                                                               const std::int64_t (&pitch)[D]) {
  const Walk<T>& walk = walks[kAxis];
  const std::int64_t step = walk.data_step * pitch[kAxis];
  std::int64_t at = walk.data * pitch[kAxis];
  const T* tap = walk.taps;
  Contraction<T, D> sum{};
  for (std::int64_t t = 0; t < walk.count; ++t, at += step, tap += walk.tap_step) {
    Contraction<T, D> inner{};
    if constexpr (kAxis == D - 1) {
      inner.value = numeric::load(data[at]);
    } else {
      inner = weigh_derivatives<kAxis + 1, D>(walks, data + at, pitch);
    }
    add_axis<T, D>(sum, kAxis, Tap<T>{tap[0], tap[walk.cap], tap[2 * walk.cap]}, inner);
  }
  return sum;
}

/// Strides of a dense box, and the place of its point `index`.
template <int D>
__device__ __forceinline__ void unravel(const std::int64_t (&sizes)[kMaxDims], std::int64_t index,
                                        std::int64_t (&place)[D]) {
#pragma unroll
  for (int d = D - 1; d >= 0; --d) {
    place[d] = index % sizes[d];
    index /= sizes[d];
  }
}
template <int D>
__device__ __forceinline__ void strides_of(const std::int64_t (&sizes)[kMaxDims],
                                           std::int64_t (&pitch)[D]) {
  std::int64_t stride = 1;
#pragma unroll
  for (int d = D - 1; d >= 0; --d) {
    pitch[d] = stride;
    stride *= sizes[d];
  }
}

// -------------------------------------------------------------------------------------- kernels

/// Fills the table: an element a thread.
template <typename T, int D>
__global__ void __launch_bounds__(kIm2colThreads)
    im2col_taps(const Im2colArgs args, const TapLayout layout, void* workspace) {
  const TapTable<T> table = tap_table::view<T, D>(layout, workspace);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kIm2colThreads;
  for (std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kIm2colThreads + threadIdx.x;
       e < layout.elements; e += step) {
    tap_table::fill<T, D>(args, table, e);
  }
}

/// A thread has an output of a plane, and makes its value in the columns of all elements.
template <typename Storage, int D>
__global__ void __launch_bounds__(kIm2colThreads)
    im2col_forward(const Im2colArgs args, const TapLayout layout, const PlanePlan plan,
                   void* workspace, void* columns) {
  using T = Compute<Storage>;
  const TapTable<T> table = tap_table::view<T, D>(layout, workspace);
  std::int64_t pitch[D];
  strides_of<D>(args.input_size, pitch);
  for (std::int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {
    const std::int64_t plane = item / plan.tiles;
    const std::int64_t i = plane % args.channels;
    const std::int64_t point = item % plan.tiles * kIm2colThreads + threadIdx.x;
    if (point >= plan.points) continue;
    const Storage* const input = static_cast<const Storage*>(args.input) +
                                 plane / args.channels * args.batch_stride +
                                 i * args.channel_stride;
    Storage* to = static_cast<Storage*>(columns) + plane * args.elements * plan.points + point;
    std::int64_t place[D];
    unravel<D>(args.output_size, point, place);
    for (std::int64_t k = 0; k < args.elements; ++k, to += plan.points) {
      const std::int64_t element = i * args.elements + k;
      const T scale = tap_table::scale<D>(table, element);
      Walk<T> walks[D];
#pragma unroll
      for (int d = 0; d < D; ++d) walks[d] = walk_to_input<D>(args, table, element, d, place[d]);
      // A scale of NaN is enough where the element has no taps to spread it.
      numeric::store(to, scale * weigh<0, D>(walks, input, pitch));
    }
  }
}

/// A thread has a point of the input.
template <typename Storage, int D>
__global__ void __launch_bounds__(kIm2colThreads)
    im2col_backward_input(const Im2colArgs args, const TapLayout layout, const PlanePlan plan,
                          void* workspace, const void* grad_columns, const Im2colGrads grads) {
  using T = Compute<Storage>;
  const TapTable<T> table = tap_table::view<T, D>(layout, workspace);
  std::int64_t pitch[D];
  strides_of<D>(args.output_size, pitch);
  std::int64_t outputs = 1;
#pragma unroll
  for (int d = 0; d < D; ++d) outputs *= args.output_size[d];
  for (std::int64_t item = blockIdx.x; item < plan.items; item += gridDim.x) {
    const std::int64_t plane = item / plan.tiles;
    const std::int64_t i = plane % args.channels;
    const std::int64_t point = item % plan.tiles * kIm2colThreads + threadIdx.x;
    if (point >= plan.points) continue;
    std::int64_t place[D];
    unravel<D>(args.input_size, point, place);
    const Storage* column =
        static_cast<const Storage*>(grad_columns) + plane * args.elements * outputs;
    T sum = T(0);
    for (std::int64_t k = 0; k < args.elements; ++k, column += outputs) {
      const std::int64_t element = i * args.elements + k;
      const T scale = tap_table::scale<D>(table, element);
      Walk<T> walks[D];
#pragma unroll
      for (int d = 0; d < D; ++d) walks[d] = walk_to_outputs<D>(args, table, element, d, place[d]);
      sum += scale * weigh<0, D>(walks, column, pitch);
    }
    Storage* const to = static_cast<Storage*>(grads.input) +
                        plane / args.channels * grads.batch_stride + i * grads.channel_stride;
    numeric::store(to + point, sum);
  }
}

/// A block has a part of the batch and an element, and adds to its sums.
template <typename Storage, int D>
__global__ void __launch_bounds__(kIm2colThreads, 2)
    im2col_backward_sums(const Im2colArgs args, const TapLayout layout, void* workspace,
                         const void* grad_columns, const Im2colGrads grads) {
  using T = Compute<Storage>;
  constexpr int kSums = static_cast<int>(tap_table::sums_of(D));
  const TapTable<T> table = tap_table::view<T, D>(layout, workspace);
  const int thread = static_cast<int>(threadIdx.x);
  T* const shared = dynamic_shared<T>();  // kSumWarps * kSums
  std::int64_t pitch[D];
  strides_of<D>(args.input_size, pitch);
  std::int64_t outputs = 1;
#pragma unroll
  for (int d = 0; d < D; ++d) outputs *= args.output_size[d];
  const std::int64_t items = grads.parts * layout.elements;
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const std::int64_t element = item % layout.elements;
    const std::int64_t i = element / args.elements;
    T sums[kSums] = {};
    for (std::int64_t n = item / layout.elements; n < args.batch; n += grads.parts) {
      const Storage* const input =
          static_cast<const Storage*>(args.input) + n * args.batch_stride + i * args.channel_stride;
      const Storage* const column =
          static_cast<const Storage*>(grad_columns) + (n * layout.elements + element) * outputs;
      for (std::int64_t point = thread; point < outputs; point += kIm2colThreads) {
        std::int64_t place[D];
        unravel<D>(args.output_size, point, place);
        Walk<T> walks[D];
#pragma unroll
        for (int d = 0; d < D; ++d) walks[d] = walk_to_input<D>(args, table, element, d, place[d]);
        const Contraction<T, D> c = weigh_derivatives<0, D>(walks, input, pitch);
        const T grad = numeric::load(column[point]);
        sums[0] += grad * c.value;
#pragma unroll
        for (int d = 0; d < D; ++d) {
          sums[1 + d] += grad * c.d_position[d];
          sums[1 + D + d] += grad * c.d_sigma[d];
        }
      }
    }
    __syncthreads();  // the sums of the last item have been read
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
      const T of_warp = group_sum<32>(sums[j]);
      if (thread % 32 == 0) shared[thread / 32 * kSums + j] = of_warp;
    }
    __syncthreads();
    if (thread < kSums) {
      T total = T(0);
      for (int warp = 0; warp < kSumWarps; ++warp) total += shared[warp * kSums + thread];
      static_cast<T*>(grads.sums)[item * kSums + thread] += total;
    }
  }
}

/// Gradients of position and sigma: an element a thread.
template <typename T, int D>
__global__ void __launch_bounds__(kIm2colThreads)
    im2col_finish(const Im2colArgs args, const TapLayout layout, void* workspace, const void* sums,
                  std::int64_t parts, void* grad_position, void* grad_sigma) {
  const TapTable<T> table = tap_table::view<T, D>(layout, workspace);
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kIm2colThreads;
  for (std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * kIm2colThreads + threadIdx.x;
       e < layout.elements; e += step) {
    tap_table::finish<T, D>(args, table, static_cast<const T*>(sums), parts,
                            static_cast<T*>(grad_position), static_cast<T*>(grad_sigma), e);
  }
}

}  // namespace dcls::cuda
