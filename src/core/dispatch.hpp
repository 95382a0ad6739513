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

template <typename Function>
static inline void dispatch_dtype(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat32: return function(TypeTag<float>{});
    case DType::kFloat64: return function(TypeTag<double>{});
    case DType::kFloat16: return function(TypeTag<Half>{});
    case DType::kBFloat16: return function(TypeTag<BFloat16>{});
  }
  std::abort();
}

/// Bytes of a value in memory.
static inline std::size_t storage_bytes(DType dtype) {
  std::size_t bytes = 0;
  dispatch_dtype(dtype, [&](auto tag) { bytes = sizeof(typename decltype(tag)::type); });
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
