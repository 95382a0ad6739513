#pragma once

// Checks of the C++ API's arguments: every message names the argument, what it got, what it takes.

#include <cstdint>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "dcls/types.hpp"

namespace dcls::validate {

// A call makes some fifty checks, which nearly always hold: small convolutions would wait for their
// messages. So a check takes the parts of its message, and joins them only where it fails.

/// An argument: its name, or that of one of its entries. Converts from a literal, as it mostly is.
struct Name {
  constexpr Name(const char* of, int entry = -1) : argument(of), index(entry) {}

  const char* argument;
  int index;  ///< of the entry; -1 for the argument itself
};

inline std::string text(const char* part) { return part; }
inline std::string text(const std::string& part) { return part; }
inline std::string text(std::int64_t number) { return std::to_string(number); }
inline std::string text(double number) {
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%g", number);
  return digits;
}
inline std::string text(const Name& name) {
  return name.argument + (name.index < 0 ? "" : "[" + std::to_string(name.index) + "]");
}
inline std::string text(const std::vector<std::int64_t>& sizes) {
  std::string all;
  for (const std::int64_t size : sizes) all += (all.empty() ? "" : ", ") + std::to_string(size);
  return "(" + all + ")";
}

/// Throws std::invalid_argument unless `holds`; its message is the parts, one after the other.
template <typename... Parts>
void require(bool holds, const Parts&... message) {
  if (!holds) throw std::invalid_argument((std::string("dcls: ") + ... + text(message)));
}

inline void check_range(const Name& name, std::int64_t value, std::int64_t lowest,
                        std::int64_t highest) {
  require(value >= lowest && value <= highest, name, " must be between ", lowest, " and ", highest,
          ", got ", value);
}

inline void check_enum(const Name& name, int value, int count) {
  require(value >= 0 && value < count, name, " has no enumerator ", std::int64_t{value});
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
      require(false, what_, " is too large: its bytes pass 2^63");
    }
    value_ = product;
    return *this;
  }

 private:
  const char* what_;
  std::int64_t value_ = 1;
};

}  // namespace dcls::validate
