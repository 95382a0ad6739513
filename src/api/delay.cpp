// Argument checks. There is one back end.

#include "dcls/delay.hpp"

#include <limits>

#include "core/checks.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/delay/delay_plan.hpp"

namespace dcls {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

const DelayArgs& checked(const DelayArgs& args) {
  using validate::check_range;
  using validate::require;
  validate::check_enum("dtype", static_cast<int>(args.dtype), kDTypeCount);
  check_range("steps", args.steps, 1, kMaxAxisSize);
  check_range("rows", args.rows, 0, kMost);
  check_range("elements", args.elements, 0, kMost);
  check_range("inputs", args.inputs, 0, kMost);
  check_range("the number of connections", args.rows * args.elements, 0, kMost);
  check_range("the number of sums", args.rows * args.steps, 0, kMost);
  if (args.rows == 0 || args.elements == 0) return args;
  require(args.delay != nullptr, "delay must not be null");
  require(args.item != nullptr, "item must not be null");
  require(args.weight != nullptr, "weight must not be null");
  for (std::int64_t j = 0; j < args.rows * args.elements; ++j) {
    check_range("delay", args.delay[j], 0, args.steps - 1);
    check_range("item", args.item[j], 0, args.inputs - 1);
  }
  return args;
}

}  // namespace

DelayStep::DelayStep(const DelayArgs& args) : plan_(new DelayPlan(checked(args))) {}
DelayStep::~DelayStep() = default;

void DelayStep::operator()(const DelayTensors& tensors, int num_threads) const {
  using validate::require;
  validate::check_range("num_threads", num_threads, 1, std::numeric_limits<int>::max());
  validate::check_range("batch", tensors.batch, 0, kMost);
  validate::Product("the number of values of the state")
      .times(plan_->rows)
      .times(plan_->steps)
      .times(tensors.batch)
      .times(8);
  validate::Product("the number of values of the input")
      .times(plan_->inputs + 64)
      .times(tensors.batch + 64)
      .times(8);
  if (tensors.batch == 0 || plan_->rows == 0) return;
  const bool delayed = plan_->steps > 1;
  require(tensors.input != nullptr || plan_->inputs == 0, "input must not be null");
  require(tensors.state != nullptr || !delayed, "state must not be null");
  require(tensors.arriving != nullptr, "arriving must not be null");
  require(tensors.next_state != nullptr || !delayed, "next_state must not be null");
  cpu::delay_step(*plan_, tensors, num_threads);
}

}  // namespace dcls
