#pragma once

#include <cstdint>

namespace dcls::bindings {

/// How pointers and streams come from Python.
using Address = std::uintptr_t;

template <typename T = void>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace dcls::bindings
