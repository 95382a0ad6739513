// A construct problem in float64, to be given to a back end in any dtype.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/dtype.hpp"
#include "dcls/construct.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls::test {

template <typename Storage>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
  static constexpr double tolerance = 2e-5;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
  static constexpr double tolerance = 1e-11;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::kFloat16;
  static constexpr double tolerance = 2e-3;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::kBFloat16;
  static constexpr double tolerance = 2e-2;
};

template <typename Storage>
std::vector<Storage> to_storage(const std::vector<double>& values) {
  std::vector<Storage> stored(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    numeric::store(&stored[i], static_cast<Compute<Storage>>(values[i]));
  }
  return stored;
}

template <typename Range>
std::vector<double> to_double(const Range& stored) {
  std::vector<double> values;
  for (const auto& value : stored) values.push_back(static_cast<double>(numeric::load(value)));
  return values;
}

/// Where a problem keeps its tensors: in vectors, or in what a test puts in their place.
struct Vectors {
  template <typename T>
  using Buffer = std::vector<T>;
};

/// The workspace of a call, aligned to 16 bytes, which its size is rounded up to.
template <typename Memory>
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : parts_((bytes + sizeof(Part) - 1) / sizeof(Part)) {}
  void* data() { return parts_.size() > 0 ? parts_.data() : nullptr; }

 private:
  struct alignas(16) Part {
    unsigned char bytes[16];
  };
  typename Memory::template Buffer<Part> parts_;
};

inline Execution cpu_threads(int num_threads) {
  Execution where;
  where.num_threads = num_threads;
  return where;
}

/// What a back end computes: the kernel, the three gradients, the marks of the support.
struct Results {
  std::vector<double> kernel, weight, position, sigma;
  std::vector<std::uint8_t> support;
};

inline double smallest_width(Version version) {
  double width = 0;
  interp::visit(version, [&](auto v) { width = interp::Interpolation<v.value>::kSmallestWidth; });
  return width;
}

struct ConstructProblem {
  ConstructArgs args;  // without pointers
  std::vector<double> weight, position, sigma, grad_kernel;

  std::int64_t cells() const {
    std::int64_t product = 1;
    for (int d = 0; d < args.ndim; ++d) product *= args.size[d];
    return product;
  }

  /// Random, with exact grid points (the kinks) and positions outside the grid among the rest.
  ConstructProblem(Version version, const std::vector<std::int64_t>& size, std::int64_t rows,
                   std::int64_t elements, unsigned seed = 0) {
    args.version = version;
    args.ndim = static_cast<int>(size.size());
    for (std::size_t d = 0; d < size.size(); ++d) args.size[d] = size[d];
    args.rows = rows;
    args.elements = elements;
    const bool has_width = interp::has_width(version);
    args.sigma_min = smallest_width(version);

    std::mt19937 engine(seed);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::int64_t count) {
      std::vector<double> values(static_cast<std::size_t>(count));
      // Eight bits each: every dtype holds them exactly, so that all solve the same problem.
      for (double& value : values) value = std::round(normal(engine) * 32) / 32;
      return values;
    };
    const std::int64_t pairs = rows * elements;
    weight = draw(pairs);
    position = draw(args.ndim * pairs);
    for (std::size_t i = 0; i < position.size(); ++i) {
      const auto d = i / static_cast<std::size_t>(pairs);
      position[i] *= std::round(static_cast<double>(size[d]) / 4 + 0.5);
      if (i % 7 == 0) position[i] = std::round(position[i]);
      if (i % 23 == 5) position[i] *= 64;
    }
    for (double& value : position) {  // large ones, too, in the eight bits of bfloat16
      const double step = std::exp2(std::floor(std::log2(std::abs(value) + 1e-9)) - 7);
      value = std::round(value / step) * step;
    }
    if (has_width) sigma = draw(args.ndim * pairs);
    grad_kernel = draw(rows * cells());
  }

  std::string name() const {
    std::string name = "version " + std::to_string(static_cast<int>(args.version)) + ", size";
    for (int d = 0; d < args.ndim; ++d) name += " " + std::to_string(args.size[d]);
    return name + ", rows " + std::to_string(args.rows) + ", elements " +
           std::to_string(args.elements);
  }

  template <typename Storage>
  Results on_cpu(int num_threads = 2) const {
    return by_the_library<Storage>(cpu_threads(num_threads));
  }

  /// The problem in `Storage` by dcls/construct.hpp.
  template <typename Storage, typename Memory = Vectors>
  Results by_the_library(const Execution& where) const {
    using Tensor = typename Memory::template Buffer<Storage>;
    const Tensor w(to_storage<Storage>(weight)), p(to_storage<Storage>(position)),
        s(to_storage<Storage>(sigma)), g(to_storage<Storage>(grad_kernel));
    ConstructArgs call = args;
    call.dtype = DTypeOf<Storage>::value;
    call.weight = w.data();
    call.position = p.data();
    call.sigma = s.size() > 0 ? s.data() : nullptr;
    Tensor kernel(g.size()), grad_w(w.size()), grad_p(p.size()), grad_s(s.size());
    construct(call, kernel.data(), where);
    construct_backward(call, g.data(),
                       {grad_w.data(), grad_p.data(), s.size() > 0 ? grad_s.data() : nullptr},
                       where);
    typename Memory::template Buffer<std::uint8_t> support(std::vector<std::uint8_t>(g.size(), 7));
    call.weight = nullptr;
    construct_support(call, support.data(), where);
    return {to_double(kernel),
            to_double(grad_w),
            to_double(grad_p),
            to_double(grad_s),
            {support.begin(), support.end()}};
  }
};

/// |actual - expected| / |expected|, in the Euclidean norm; NaN if anything is.
inline double relative_error(const std::vector<double>& actual,
                             const std::vector<double>& expected) {
  double difference = actual.size() == expected.size() ? 0.0 : NAN;
  double norm = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

/// Compares what a back end computed in `Storage` with the CPU back end.
template <typename Storage>
void check_results(const ConstructProblem& problem, const Results& got) {
  const check::Case here(problem.name(), ", dtype ", static_cast<int>(DTypeOf<Storage>::value));
  const double tolerance = DTypeOf<Storage>::tolerance;
  const Results expected = problem.on_cpu<double>();
  CHECK(relative_error(got.kernel, expected.kernel) < tolerance);
  CHECK(relative_error(got.weight, expected.weight) < tolerance);
  CHECK(relative_error(got.position, expected.position) < tolerance);
  CHECK(relative_error(got.sigma, expected.sigma) < tolerance);
  // In the same precision: the cut of the gaussian depends on it.
  CHECK(got.support == problem.on_cpu<Storage>().support);
}

#define DCLS_LISTED(enumerator) Version::enumerator,
inline constexpr Version kVersions[] = {DCLS_FOR_EACH_VERSION(DCLS_LISTED)};
#undef DCLS_LISTED

}  // namespace dcls::test
