#pragma once

// The one place where run-time values become template parameters. A value outside the lists is a
// programming error: arguments are validated before (src/api).

#include <cstddef>
#include <cstdlib>
#include <type_traits>

#include "core/dtype.hpp"
#include "dcls/types.hpp"

namespace dcls {

template <typename T>
struct TypeTag {
  using type = T;
};

/// Calls `function` with the traits of the dtype.
template <typename Function>
static inline void visit_dtype(DType dtype, Function&& function) {
#define DCLS_VISIT_DTYPE(enumerator) \
  case DType::enumerator: return function(DTypeTraits<DType::enumerator>{});
  switch (dtype) { DCLS_FOR_EACH_DTYPE(DCLS_VISIT_DTYPE) }
#undef DCLS_VISIT_DTYPE
  std::abort();
}

/// Calls `function` with the type stored, as a TypeTag.
template <typename Function>
static inline void dispatch_dtype(DType dtype, Function&& function) {
  visit_dtype(dtype, [&](auto traits) { function(TypeTag<typename decltype(traits)::Storage>{}); });
}

/// Calls `function` with the type computed in, as a TypeTag.
template <typename Function>
static inline void dispatch_compute(DType dtype, Function&& function) {
  dispatch_dtype(dtype,
                 [&](auto tag) { function(TypeTag<Compute<typename decltype(tag)::type>>{}); });
}

/// Bytes of a value in memory, and of one that is computed.
static inline std::size_t storage_bytes(DType dtype) {
  std::size_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) { bytes = sizeof(typename decltype(tag)::type); });
  return bytes;
}
static inline std::size_t compute_bytes(DType dtype) {
  std::size_t bytes = 0;
  dispatch_compute(dtype, [&](auto tag) { bytes = sizeof(typename decltype(tag)::type); });
  return bytes;
}

template <typename Function>
static inline void dispatch_ndim(int ndim, Function&& function) {
  switch (ndim) {
    case 1: return function(std::integral_constant<int, 1>{});
    case 2: return function(std::integral_constant<int, 2>{});
    case 3: return function(std::integral_constant<int, 3>{});
  }
  std::abort();
}

}  // namespace dcls
