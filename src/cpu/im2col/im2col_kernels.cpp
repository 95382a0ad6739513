// The im2col operator on the CPU, compiled once per instruction set.
//
// All is done by rows along the last axis. A plane of the input is laid out once for all elements
// (im2col_rows.hpp), so that shifting it is moving a pointer. No thread adds to what another thread
// writes.

#include "cpu/im2col/im2col_kernels.hpp"

#include <cstdint>
#include <type_traits>

#include "core/dispatch.hpp"
#include "cpu/im2col/im2col_backward.hpp"
#include "cpu/im2col/im2col_forward.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::cpu::DCLS_SIMD_NAMESPACE {
namespace {

/// Calls function(tag of the storage type, number of dimensions).
template <typename Function>
DCLS_HD void dispatch(const Im2colArgs& args, Function&& function) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    dispatch_ndim(args.ndim, [&](auto ndim) { function(tag, ndim); });
  });
}
/// With the type computed in: the table knows no other.
template <typename Function>
DCLS_HD void dispatch_table(const Im2colArgs& args, Function&& function) {
  dispatch_ndim(args.ndim, [&](auto ndim) {
    dispatch_compute(args.dtype, [&](auto tag) { function(tag, ndim); });
  });
}
template <typename Function>
DCLS_HD void dispatch_order(const Im2colGrads& grads, Function&& function) {
  if (grads.sums == nullptr) return function(std::integral_constant<int, kInput>{});
  if (!grads.sigma) return function(std::integral_constant<int, kPosition>{});
  return function(std::integral_constant<int, kSigma>{});
}

void make_layout(const Im2colArgs& args, TapLayout* layout) {
  const FlushDenormals flush;
  *layout = {args.channels * args.elements, 0, {0, 0, 0}};
  dispatch_table(args, [&](auto tag, auto ndim) {
    using T = typename decltype(tag)::type;
    for (int d = 0; d < ndim(); ++d) {
      const std::int64_t most = interp::largest_support(args.version, args.size[d]);
      std::int64_t cap = 1;
      interp::visit(args.version, [&](auto version) {
        for (std::int64_t element = 0; element < layout->elements && cap < most; ++element) {
          const interp::Element<T> e = tap_table::element_of<T>(args, element, d);
          if (e.p != e.p || e.sigma != e.sigma) continue;
          const interp::Support support = interp::support<version.value>(e, args.size[d]);
          cap = larger(cap, support.hi - support.lo);
        }
      });
      layout->cap[d] = smaller(cap, most);
      layout->values += 3 * layout->cap[d];
    }
  });
}

std::int64_t table_bytes(const Im2colArgs& args, const TapLayout& layout) {
  std::int64_t bytes = 0;
  dispatch_table(args, [&](auto tag, auto ndim) {
    bytes = tap_table::bytes<typename decltype(tag)::type>(layout, ndim());
  });
  return bytes;
}

void fill(const Im2colArgs& args, const TapLayout& layout, void* table, std::int64_t begin,
          std::int64_t end) {
  const FlushDenormals flush;
  dispatch_table(args, [&](auto tag, auto ndim) {
    using T = typename decltype(tag)::type;
    const TapTable<T> view = tap_table::view<T, ndim()>(layout, table);
    for (std::int64_t e = begin; e < end; ++e) tap_table::fill<T, ndim()>(args, view, e);
  });
}

void forward(const Im2colArgs& args, const TapLayout& layout, void* table, std::int64_t cuts,
             void* columns, std::int64_t begin, std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch(args, [&](auto tag, auto ndim) {
    using Storage = typename decltype(tag)::type;
    forward_planes<Storage, ndim()>(args, layout, table, cuts, static_cast<Storage*>(columns),
                                    begin, end, scratch);
  });
}

void backward(const Im2colArgs& args, const TapLayout& layout, void* table,
              const void* grad_columns, const Im2colGrads& grads, std::int64_t begin,
              std::int64_t end, void* scratch) {
  const FlushDenormals flush;
  dispatch(args, [&](auto tag, auto ndim) {
    using Storage = typename decltype(tag)::type;
    dispatch_order(grads, [&](auto order) {
      backward_planes<order(), Storage, ndim()>(args, layout, table,
                                                static_cast<const Storage*>(grad_columns), grads,
                                                begin, end, scratch);
    });
  });
}

void finish(const Im2colArgs& args, const TapLayout& layout, void* table, const void* sums,
            std::int64_t parts, void* grad_position, void* grad_sigma, std::int64_t begin,
            std::int64_t end) {
  const FlushDenormals flush;
  dispatch_table(args, [&](auto tag, auto ndim) {
    using T = typename decltype(tag)::type;
    const TapTable<T> view = tap_table::view<T, ndim()>(layout, table);
    for (std::int64_t e = begin; e < end; ++e) {
      tap_table::finish<T, ndim()>(args, view, static_cast<const T*>(sums), parts,
                                   static_cast<T*>(grad_position), static_cast<T*>(grad_sigma), e);
    }
  });
}

template <typename Cut>
DCLS_HD std::int64_t scratch_bytes(const Im2colArgs& args, const TapLayout& layout, Cut&& cut) {
  std::int64_t bytes = 0;
  dispatch(args, [&](auto tag, auto ndim) {
    using Storage = typename decltype(tag)::type;
    using T = Compute<Storage>;
    Cutter<T> cutter{nullptr, 0};
    cut(make_plan<Storage, ndim()>(args, layout), cutter);
    bytes = cutter.values * static_cast<std::int64_t>(sizeof(T));
  });
  return bytes;
}

std::int64_t forward_scratch(const Im2colArgs& args, const TapLayout& layout) {
  return scratch_bytes(args, layout,
                       [](const auto& plan, auto& cutter) { cut_forward(plan, cutter); });
}
std::int64_t backward_scratch(const Im2colArgs& args, const TapLayout& layout) {
  return scratch_bytes(args, layout,
                       [](const auto& plan, auto& cutter) { cut_backward<kSigma>(plan, cutter); });
}

}  // namespace

const Im2colKernels im2col_kernels = {&make_layout,     &table_bytes,     &fill,
                                      &forward,         &backward,        &finish,
                                      &forward_scratch, &backward_scratch};

}  // namespace dcls::cpu::DCLS_SIMD_NAMESPACE
