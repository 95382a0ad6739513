#pragma once

// Checks of the C++ API's arguments: every message names the argument, what it got, what it takes.

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "dcls/types.hpp"

namespace dcls::validate {

inline void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("dcls: " + message);
}

inline void check_range(const std::string& name, std::int64_t value, std::int64_t lowest,
                        std::int64_t highest) {
  require(value >= lowest && value <= highest, name + " must be between " + std::to_string(lowest) +
                                                   " and " + std::to_string(highest) + ", got " +
                                                   std::to_string(value));
}

inline void check_enum(const std::string& name, int value, int count) {
  require(value >= 0 && value < count, name + " has no enumerator " + std::to_string(value));
}

inline void check_execution(const Execution& where) {
  check_enum("device", static_cast<int>(where.device), 2);
  if (where.device == DeviceType::kCpu) {
    check_range("num_threads", where.num_threads, 1, std::numeric_limits<int>::max());
  } else {
    check_range("device_index", where.device_index, 0, std::numeric_limits<int>::max());
  }
}

/// A product of sizes that must stay below 2^63.
class Product {
 public:
  explicit Product(const char* what) : what_(what) {}

  Product& times(std::int64_t factor) {
    std::int64_t product = 0;
    if (__builtin_mul_overflow(value_, factor, &product)) {
      require(false, std::string(what_) + " is too large: its bytes pass 2^63");
    }
    value_ = product;
    return *this;
  }

 private:
  const char* what_;
  std::int64_t value_ = 1;
};

}  // namespace dcls::validate
