#pragma once

// Whole delays, sorted for the kernels.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dcls/delay.hpp"

namespace dcls {

/// The connections that arrive in the same row at the same step are a bag.
///
/// The rows are cut into chunks. A chunk has the bags of its rows step by step, those of one step
/// by their length: a loop that ends after as many turns as the last one is predicted.
struct DelayPlan {
  static constexpr std::int64_t kRows = 64;  ///< of a chunk
  struct Bag {
    std::int32_t row;    ///< of the chunk
    std::int32_t begin;  ///< in the connections; it ends where the next one begins
  };

  explicit DelayPlan(const DelayArgs& args);

  DType dtype;
  std::int64_t steps, rows, inputs;
  std::vector<std::int32_t> first;  ///< bag of (chunk, step), and one more
  std::vector<Bag> bags;            ///< those that are not empty, and one more
  std::vector<std::int32_t> item;   ///< of each connection
  std::vector<std::byte> weight;    ///< of each connection, in the type computed in
};

}  // namespace dcls
