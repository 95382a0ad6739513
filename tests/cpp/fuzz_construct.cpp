// Fuzzes the construct operator of the C++ API: see fuzz.hpp.
#include <cstdint>
#include <limits>

#include "core/dtype.hpp"
#include "dcls/construct.hpp"
#include "fuzz.hpp"
#include "interpolation/interpolation.hpp"

using namespace dcls;
using namespace dcls::fuzz;

namespace {

/// What the documentation of the API refuses, written down a second time.
bool is_valid_construct(const ConstructArgs& args, const Execution& where) {
  if (!is_version(args.version) || !is_dtype(args.dtype) || !is_valid(where)) {
    return false;
  }
  const bool needed = args.rows > 0 && args.elements > 0;
  if (needed && (args.weight == nullptr || args.position == nullptr)) return false;
  if (!interp::has_width(args.version)) return args.sigma == nullptr;
  if (needed && args.sigma == nullptr) return false;
  return args.sigma_min > 0 && args.sigma_min <= std::numeric_limits<double>::max();
}

void run(const std::uint8_t* data, std::size_t size) {
  ++counts.runs;
  Reader reader(data, size);
  ConstructArgs args;
  args.version = static_cast<Version>(reader.integer(0, kVersionCount - 1));
  args.dtype = static_cast<DType>(reader.integer(0, kDTypeCount - 1));
  args.ndim = static_cast<int>(reader.integer(1, 3));
  for (std::int64_t& length : args.size) length = reader.integer(1, 12);
  args.rows = reader.integer(0, 5);
  args.elements = reader.integer(0, 5);
  const std::uint8_t kind = reader.byte();
  args.sigma_min = kind < 16 ? numeric::bit_cast<double>(reader.bits()) : (kind - 15) / 64.0;
  const Execution where = read_execution(reader);
  const std::size_t bytes = value_bytes(args.dtype);

  const bool has_axes = between(args.ndim, 1, kMaxDims);
  const std::int64_t cells = has_axes ? small_points(args.size, args.ndim) : -1;
  const std::int64_t grid = small_product({cells, args.rows});
  const std::int64_t pairs = small_product({args.rows, args.elements});
  const std::int64_t places = small_product({args.ndim, pairs});
  if (cells < 1 || grid < 0 || places < 0) {
    // Wild sizes, or valid ones for which there is no memory here: with null pointers they must be
    // refused, unless there is nothing to compute.
    const bool done = outcome(where, [&] { construct(args, nullptr, where); });
    if (done && args.rows != 0) stop("null pointers were taken");
    ++counts.wild;
    return;
  }

  Buffer weight(pairs, bytes), position(places, bytes), sigma(places, bytes);
  Buffer kernel(grid, bytes), grad_kernel(grid, bytes);
  Buffer grad_weight(pairs, bytes), grad_position(places, bytes), grad_sigma(places, bytes);
  const bool has_sigma = is_version(args.version) && interp::has_width(args.version);
  const std::uint8_t nulls = reader.byte() % 16;  // one in 16 of each
  if (nulls != 1) args.weight = weight.fill(reader).data();
  if (nulls != 2) args.position = position.fill(reader).data();
  if (has_sigma != (nulls == 3)) args.sigma = sigma.fill(reader).data();
  void* const target = nulls == 4 ? nullptr : kernel.data();
  const bool valid = is_valid_construct(args, where);
  const bool expected = valid && (args.rows == 0 || target != nullptr);
  if (check_outcome("construct", expected, where, [&] { construct(args, target, where); })) {
    ++counts.results;
    check_written("the kernel", kernel);
  }

  // Its weight may be null, nothing else.
  ConstructArgs unweighted = args;
  unweighted.weight = nullptr;
  Buffer support(grid, 1);
  auto* const marks = target == nullptr ? nullptr : static_cast<std::uint8_t*>(support.data());
  const auto mark = [&] { construct_support(unweighted, marks, where); };
  if (args.weight != nullptr) {
    check_outcome("construct_support", expected, where, mark);
  } else {
    outcome(where, mark);
  }

  ConstructGrads grads;
  const std::uint8_t asked = reader.byte();
  if (asked & 1u) grads.weight = grad_weight.data();
  if (asked & 2u) grads.position = grad_position.data();
  if (asked & 4u) grads.sigma = grad_sigma.data();
  if (!has_sigma && asked < 200) grads.sigma = nullptr;
  const void* const source = asked % 16 == 8 ? nullptr : grad_kernel.fill(reader).data();
  const bool nothing =
      args.rows == 0 || args.elements == 0 ||
      (grads.weight == nullptr && grads.position == nullptr && grads.sigma == nullptr);
  const bool allowed =
      valid && (has_sigma || grads.sigma == nullptr) && (nothing || source != nullptr);
  if (check_outcome("construct_backward", allowed, where,
                    [&] { construct_backward(args, source, grads, where); })) {
    ++counts.gradients;
    if (grads.weight != nullptr) check_written("the gradient of the weight", grad_weight);
    if (grads.position != nullptr) check_written("the gradient of the position", grad_position);
    if (grads.sigma != nullptr) check_written("the gradient of sigma", grad_sigma);
  }
}

}  // namespace

DCLS_FUZZ_MAIN(run, 96)
