#pragma once

#include <cstdint>
#include <memory>

#include "dcls/types.hpp"

namespace dcls {

/// Connections whose values arrive whole numbers of steps later, `elements` to each row.
struct DelayArgs {
  DType dtype = DType::kFloat32;        ///< of the weights, and of all tensors of a step
  std::int64_t steps = 1;               ///< the longest delay + 1
  std::int64_t rows = 0;                ///< of what is on its way
  std::int64_t elements = 0;            ///< connections of each row
  std::int64_t inputs = 0;              ///< of a step
  const std::int64_t* delay = nullptr;  ///< (rows, elements), 0 to steps - 1
  const std::int64_t* item = nullptr;   ///< (rows, elements), the inputs that they read
  const void* weight = nullptr;         ///< (rows, elements)
};

/// The tensors of one step. Those without strides are dense.
struct DelayTensors {
  std::int64_t batch = 0;
  const void* input = nullptr;    ///< (inputs, batch)
  std::int64_t input_stride = 0;  ///< values between two inputs
  std::int64_t batch_stride = 0;  ///< values between two items of the batch
  const void* state = nullptr;    ///< (steps - 1, rows, batch), what is on its way
  void* arriving = nullptr;       ///< (rows, batch), overwritten
  void* next_state = nullptr;     ///< as state, overwritten; may be the same memory
};

struct DelayPlan;

/// Sends the values of one step to where they arrive:
///
///   pending[t, r, b] = state[t, r, b] + sum_{j: delay[r, j] = t} weight[r, j] * input[item[r, j],
///   b]
///
/// with state[steps - 1] = 0. `arriving` becomes pending[0], and `next_state` the rest. Runs on the
/// CPU. Each sum has one order: results do not depend on the thread count.
class DCLS_API DelayStep {
 public:
  /// Copies and sorts the connections.
  /// @throws std::invalid_argument if an argument is out of range, one of `delay` and `item`
  ///         included, or a needed pointer is null; at most 2^31 - 1 connections and sums.
  explicit DelayStep(const DelayArgs& args);
  ~DelayStep();
  DelayStep(const DelayStep&) = delete;
  DelayStep& operator=(const DelayStep&) = delete;

  /// Takes a step. Several threads may do so at once.
  /// @throws std::invalid_argument if an argument is out of range or a needed pointer is null.
  void operator()(const DelayTensors& tensors, int num_threads) const;

 private:
  std::unique_ptr<const DelayPlan> plan_;
};

}  // namespace dcls
