// Argument checks and choice of the back end. Compiled without nvcc.

#include "dcls/construct.hpp"

#include <cmath>
#include <limits>
#include <string>

#include "api/check_args.hpp"
#include "core/checks.hpp"
#include "cpu/cpu_backend.hpp"
#include "cuda/cuda_backend.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {

double default_sigma_min(Version version) {
  validate::check_enum("version", static_cast<int>(version), kVersionCount);
  double width = 0;
  interp::visit(version, [&](auto v) { width = interp::Interpolation<v.value>::kSmallestWidth; });
  return width;
}

double api::checked_sigma_min(Version version, double sigma_min) {
  if (sigma_min == kDefaultSigmaMin) return default_sigma_min(version);
  validate::require(!interp::has_width(version) || (std::isfinite(sigma_min) && sigma_min > 0),
                    "sigma_min must be finite and positive, got ", sigma_min);
  return sigma_min;
}

ConstructArgs api::checked_construct(ConstructArgs args, const Execution& where, Weight weight) {
  using validate::require;
  validate::check_execution(where);
  validate::check_enum("dtype", static_cast<int>(args.dtype), kDTypeCount);
  validate::check_enum("version", static_cast<int>(args.version), kVersionCount);
  validate::check_range("ndim", args.ndim, 1, kMaxDims);
  validate::Product cells("the number of cells of all kernels");
  int rows_taken = 0;
  for (int d = 0; d < args.ndim; ++d) {
    validate::check_range({"size", d}, args.size[d], 1, kMaxAxisSize);
    cells.times(args.size[d]);
    validate::check_range({"position_row", d}, args.position_row[d], 0, args.ndim - 1);
    rows_taken |= 1 << args.position_row[d];
  }
  require(rows_taken == (1 << args.ndim) - 1, "position_row must be a permutation");
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  validate::check_range("rows", args.rows, 0, kMax);
  validate::check_range("elements", args.elements, 0, kMax);
  cells.times(args.rows).times(8);
  validate::Product("the number of kernel elements")
      .times(args.rows)
      .times(args.elements)
      .times(args.ndim)
      .times(8);
  const bool has_elements = args.rows > 0 && args.elements > 0;
  require(!has_elements || weight == Weight::kNotRead || args.weight != nullptr,
          "weight must not be null");
  require(!has_elements || args.position != nullptr, "position must not be null");
  if (interp::has_width(args.version)) {
    require(!has_elements || args.sigma != nullptr, "sigma must not be null for this version");
  } else {
    require(args.sigma == nullptr, "sigma must be null for a version without widths");
  }
  args.sigma_min = checked_sigma_min(args.version, args.sigma_min);
  return args;
}

void construct(const ConstructArgs& given, void* kernel, const Execution& where) {
  const ConstructArgs args = api::checked_construct(given, where);
  if (args.rows == 0) return;
  validate::require(kernel != nullptr, "kernel must not be null");
  if (where.device == DeviceType::kCuda) {
    cuda::construct(args, kernel, where);
  } else {
    cpu::construct(args, kernel, nullptr, where.num_threads);
  }
}

void construct_backward(const ConstructArgs& given, const void* grad_kernel,
                        const ConstructGrads& grads, const Execution& where) {
  const ConstructArgs args = api::checked_construct(given, where);
  validate::require(grads.sigma == nullptr || interp::has_width(args.version),
                    "grads.sigma must be null for a version without widths");
  if (args.rows == 0 || args.elements == 0) return;
  if (grads.weight == nullptr && grads.position == nullptr && grads.sigma == nullptr) return;
  validate::require(grad_kernel != nullptr, "grad_kernel must not be null");
  if (where.device == DeviceType::kCuda) {
    cuda::construct_backward(args, grad_kernel, grads, where);
  } else {
    cpu::construct_backward(args, grad_kernel, grads, where.num_threads);
  }
}

void construct_support(const ConstructArgs& given, std::uint8_t* support, const Execution& where) {
  const ConstructArgs args = api::checked_construct(given, where, api::Weight::kNotRead);
  if (args.rows == 0) return;
  validate::require(support != nullptr, "support must not be null");
  if (where.device == DeviceType::kCuda) {
    cuda::construct_support(args, support, where);
  } else {
    cpu::construct(args, nullptr, support, where.num_threads);
  }
}

}  // namespace dcls
