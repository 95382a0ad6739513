// The C++ API of the construct operator on the CPU.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "dcls/runtime.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

/// The tap of a version at the distance `a` from the position.
double tap(Version version, double a, double sigma) {
  switch (version) {
    case Version::kV0:
    case Version::kV1: return std::max(0.0, 1 - a);
    case Version::kMax: return std::max(0.0, sigma - a);
    case Version::kGauss: return std::exp(-a * a / (2 * sigma * sigma));
    case Version::kSpline:
      return a < 1 ? 2.0 / 3 - a * a + a * a * a / 2 : a < 2 ? std::pow(2 - a, 3) / 6 : 0;
  }
  throw std::logic_error("no formula for this version");
}

/// The formula as the papers write it, one element and one cell at a time.
std::vector<double> by_the_formula(const ConstructProblem& problem) {
  const ConstructArgs& a = problem.args;
  const std::int64_t cells = problem.cells();
  std::vector<double> kernel(static_cast<std::size_t>(a.rows * cells), 0.0);
  for (std::int64_t index = 0; index < a.rows * a.elements; ++index) {
    std::vector<double> phi(static_cast<std::size_t>(cells));
    double sum = 0;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      double product = 1;
      std::int64_t rest = cell;
      for (int d = a.ndim - 1; d >= 0; --d) {
        const auto at = static_cast<std::size_t>(d * a.rows * a.elements + index);
        const double p = problem.position[at] + static_cast<double>(a.size[d] / 2);
        const double delta = static_cast<double>(rest % a.size[d]) - p;
        rest /= a.size[d];
        const bool wide = interp::has_width(a.version);
        const double sigma = wide ? std::abs(problem.sigma[at]) + a.sigma_min : 0;
        product *= tap(a.version, std::abs(delta), sigma);
      }
      phi[static_cast<std::size_t>(cell)] = product;
      sum += product;
    }
    const double norm = interp::is_normalised(a.version) ? sum + 1e-7 : 1.0;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      kernel[static_cast<std::size_t>(index / a.elements * cells + cell)] +=
          problem.weight[static_cast<std::size_t>(index)] * phi[static_cast<std::size_t>(cell)] /
          norm;
    }
  }
  return kernel;
}

}  // namespace

TEST(matches_the_formula) {
  for (const Version version : kVersions) {
    for (const auto& size :
         std::vector<std::vector<std::int64_t>>{{1}, {8}, {129}, {17, 17}, {3, 40}, {3, 4, 5}}) {
      const ConstructProblem problem(version, size, 6, 4);
      const check::Case here("version ", static_cast<int>(version), ", axes ", size.size());
      const std::vector<double> expected = by_the_formula(problem);
      CHECK(relative_error(problem.on_cpu<double>().kernel, expected) < 1e-12);
      CHECK(relative_error(problem.on_cpu<float>().kernel, expected) < 1e-5);
      CHECK(relative_error(problem.on_cpu<Half>().kernel, expected) < 1e-3);
      CHECK(relative_error(problem.on_cpu<BFloat16>().kernel, expected) < 1e-2);
    }
  }
}

TEST(gradients_match_differences) {
  for (const Version version : kVersions) {
    const check::Case here("version ", static_cast<int>(version));
    ConstructProblem problem(version, {6, 7}, 2, 3);
    for (double& p : problem.position) p = std::floor(p / 8) + 0.3;  // off the kinks
    for (double& s : problem.sigma) s = 0.125;
    const Results analytic = problem.on_cpu<double>();
    const auto loss = [&] {
      const std::vector<double> kernel = by_the_formula(problem);
      double sum = 0;
      for (std::size_t i = 0; i < kernel.size(); ++i) sum += kernel[i] * problem.grad_kernel[i];
      return sum;
    };
    const auto check_values = [&](std::vector<double>& values, const std::vector<double>& grads) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double value = values[i], step = 1e-6;
        values[i] = value + step;
        const double above = loss();
        values[i] = value - step;
        const double below = loss();
        values[i] = value;
        CHECK_CLOSE(grads[i], (above - below) / (2 * step), 1e-6, 1e-7);
      }
    };
    check_values(problem.weight, analytic.weight);
    check_values(problem.position, analytic.position);
    check_values(problem.sigma, analytic.sigma);
  }
}

TEST(support_is_where_gradients_come_from) {
  for (const Version version : kVersions) {
    for (const auto& size : std::vector<std::vector<std::int64_t>>{{9}, {8, 21}, {3, 4, 5}}) {
      const check::Case here("version ", static_cast<int>(version), ", axes ", size.size());
      ConstructProblem problem(version, size, 5, 3);
      const Results full = problem.on_cpu<double>();
      std::size_t outside = 0;
      for (std::size_t i = 0; i < full.support.size(); ++i) {
        CHECK(full.support[i] <= 1);
        if (full.support[i] == 1) continue;
        CHECK_EQ(full.kernel[i], 0.0);
        problem.grad_kernel[i] = 1e3;
        ++outside;
      }
      CHECK(version == Version::kGauss || outside > 0);
      const Results same = problem.on_cpu<double>();
      CHECK_SAME_BITS(same.weight, full.weight);
      CHECK_SAME_BITS(same.position, full.position);
      CHECK_SAME_BITS(same.sigma, full.sigma);
    }
  }
}

TEST(non_finite_positions_fill_their_row) {
  for (const Version version : kVersions) {
    for (const auto& size : std::vector<std::vector<std::int64_t>>{{40}, {40, 70}, {5, 40, 35}}) {
      for (std::size_t axis = 0; axis < size.size(); ++axis) {
        ConstructProblem problem(version, size, 2, 2);
        problem.position[axis * 4 + 3] = HUGE_VAL;  // row 1, element 1
        const Results got = problem.on_cpu<float>();
        const std::size_t cells = got.kernel.size() / 2;
        for (std::size_t i = 0; i < 2 * cells; ++i) {
          CHECK_EQ(got.kernel[i] != got.kernel[i], i >= cells);
          CHECK(i < cells || got.support[i] == 1);
        }
      }
    }
  }
}

TEST(any_number_of_threads) {
  const ConstructProblem problem(Version::kGauss, {9, 9}, 500, 5);
  const Results one = problem.on_cpu<float>(1);
  for (const int threads : {2, 3, 8}) {
    const Results many = problem.on_cpu<float>(threads);
    CHECK_SAME_BITS(many.kernel, one.kernel);
    CHECK_SAME_BITS(many.position, one.position);
    CHECK_SAME_BITS(many.sigma, one.sigma);
    CHECK_SAME_BITS(many.support, one.support);
  }
}

TEST(bad_arguments) {
  const float value = 0;
  float kernel[5] = {};
  const auto call = [&](auto&& change) {
    ConstructArgs args;
    args.ndim = 1;
    args.size[0] = 5;
    args.rows = args.elements = 1;
    args.sigma_min = 0.27;
    args.weight = args.position = args.sigma = &value;
    Execution where;
    change(args, where);
    construct(args, kernel, where);
  };
  using A = ConstructArgs;
  using E = Execution;
  call([](A&, E&) {});
  const auto bad = [&](const char* part, auto&& change) {
    CHECK_THROWS(std::invalid_argument, part, call(change));
  };
  bad("ndim must be between 1 and 3, got 0", [](A& a, E&) { a.ndim = 0; });
  bad("ndim must be between 1 and 3, got 4", [](A& a, E&) { a.ndim = 4; });
  bad("size[0] must be between 1", [](A& a, E&) { a.size[0] = 0; });
  bad("rows must be between 0", [](A& a, E&) { a.rows = -1; });
  bad("elements must be between 0", [](A& a, E&) { a.elements = -1; });
  bad("too large", [](A& a, E&) { a.rows = a.elements = std::int64_t{1} << 40; });
  bad("weight must not be null", [](A& a, E&) { a.weight = nullptr; });
  bad("position must not be null", [](A& a, E&) { a.position = nullptr; });
  bad("sigma must not be null", [](A& a, E&) { a.sigma = nullptr; });
  bad("sigma must be null", [](A& a, E&) { a.version = Version::kV0; });
  bad("sigma_min", [](A& a, E&) { a.sigma_min = std::nan(""); });
  bad("sigma_min", [](A& a, E&) { a.sigma_min = 0; });
  bad("position_row must be a permutation", [](A& a, E&) {
    a.size[1] = a.ndim = 2;
    a.position_row[1] = 0;
  });
  bad("version", [](A& a, E&) { a.version = static_cast<Version>(7); });
  bad("dtype", [](A& a, E&) { a.dtype = static_cast<DType>(-1); });
  bad("device", [](A&, E& e) { e.device = static_cast<DeviceType>(2); });
  bad("num_threads", [](A&, E& e) { e.num_threads = 0; });
  bad("device_index", [](A&, E& e) {
    e.device = DeviceType::kCuda;
    e.device_index = -1;
  });
}

TEST(bad_arguments_of_support) {
  const float value = 0;
  std::uint8_t support[5] = {};
  ConstructArgs args;
  args.version = Version::kV1;
  args.ndim = 1;
  args.size[0] = 5;
  args.rows = args.elements = 1;
  args.position = &value;
  construct_support(args, support, {});
  CHECK_EQ(support[1] + 10 * support[2] + 100 * support[3], 10);
  CHECK_THROWS(std::invalid_argument, "support must not be null",
               construct_support(args, nullptr, {}));
  args.sigma = &value;
  CHECK_THROWS(std::invalid_argument, "sigma must be null", construct_support(args, support, {}));
  args.sigma = args.position = nullptr;
  CHECK_THROWS(std::invalid_argument, "position must not be null",
               construct_support(args, support, {}));
}

TEST(cuda_that_is_not_there) {
  if (cuda_status().available) {
    CHECK(build_info().cuda);
    return;
  }
  CHECK(!cuda_status().reason.empty());
  const float value = 0;
  float kernel[5] = {};
  ConstructArgs args;
  args.version = Version::kV1;
  args.ndim = 1;
  args.size[0] = 5;
  args.rows = args.elements = 1;
  args.weight = args.position = &value;
  Execution where;
  where.device = DeviceType::kCuda;
  CHECK_THROWS(std::runtime_error, "dcls: ", construct(args, kernel, where));
}

CHECK_MAIN()
