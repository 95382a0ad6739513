// The C++ API of the im2col operator on the CPU.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "im2col_problem.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

/// The columns by the kernels that construct builds of weights of 1, one product at a time.
std::vector<double> by_the_formula(const Im2colProblem& problem) {
  const Im2colArgs& a = problem.args;
  const std::int64_t pairs = a.channels * a.elements;
  std::int64_t cells = 1, outputs = 1;
  for (int d = 0; d < a.ndim; ++d) {
    cells *= a.size[d];
    outputs *= a.output_size[d];
  }
  std::vector<double> kernels(static_cast<std::size_t>(pairs * cells));
  const std::vector<double> ones(static_cast<std::size_t>(pairs), 1.0);
  ConstructArgs build;
  build.version = a.version;
  build.dtype = DType::kFloat64;
  build.ndim = a.ndim;
  for (int d = 0; d < a.ndim; ++d) build.size[d] = a.size[d];
  build.rows = pairs;
  build.elements = 1;
  build.sigma_min = a.sigma_min;
  build.weight = ones.data();
  build.position = problem.position.data();
  build.sigma = problem.sigma.empty() ? nullptr : problem.sigma.data();
  construct(build, kernels.data(), {});

  std::vector<double> columns(static_cast<std::size_t>(a.batch * pairs * outputs), 0.0);
  for (std::size_t index = 0; index < columns.size(); ++index) {
    const auto flat = static_cast<std::int64_t>(index);
    const std::int64_t pair = flat / outputs % pairs;
    const std::int64_t n = flat / outputs / pairs;
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      std::int64_t o = flat % outputs, x = cell, at = 0, pitch = 1;
      bool inside = true;
      for (int d = a.ndim - 1; d >= 0; --d) {
        const std::int64_t place =
            o % a.output_size[d] * a.stride[d] - a.padding[d] + x % a.size[d];
        inside = inside && place >= 0 && place < a.input_size[d];
        at += place * pitch;
        pitch *= a.input_size[d];
        o /= a.output_size[d];
        x /= a.size[d];
      }
      if (!inside) continue;
      const std::int64_t start = n * a.batch_stride + pair / a.elements * a.channel_stride;
      columns[index] += kernels[static_cast<std::size_t>(pair * cells + cell)] *
                        problem.input[static_cast<std::size_t>(start + at)];
    }
  }
  return columns;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

TEST(matches_the_formula) {
  for (const Version version : kVersions) {
    for (const Im2colShape& shape : kIm2colShapes) {
      const Im2colProblem problem(version, shape);
      const check::Case here(problem.name());
      const std::vector<double> expected = by_the_formula(problem);
      CHECK(relative_error(problem.on_cpu<double>().columns, expected) < 1e-12);
      CHECK(relative_error(problem.on_cpu<float>().columns, expected) < 1e-5);
      CHECK(relative_error(problem.on_cpu<Half>().columns, expected) < 1e-3);
      CHECK(relative_error(problem.on_cpu<BFloat16>().columns, expected) < 1e-2);
    }
  }
}

TEST(gradients_match_the_formula) {
  for (const Version version : kVersions) {
    for (const Im2colShape& shape : kIm2colShapes) {
      Im2colProblem problem(version, shape);
      const check::Case here(problem.name());
      for (double& p : problem.position) p = std::floor(p / 8) + 0.3;  // off the kinks
      for (double& s : problem.sigma) s = 0.125;
      const Im2colResults analytic = problem.on_cpu<double>();
      // The columns are linear in the input: <columns, grad_columns> = <input, grad_input>.
      const double loss = dot(by_the_formula(problem), problem.grad_columns);
      CHECK_CLOSE(dot(problem.input, analytic.input), loss, 1e-10, 1e-10);
      const auto check_values = [&](std::vector<double>& values, const std::vector<double>& grads) {
        for (std::size_t i = 0; i < values.size(); ++i) {
          const double value = values[i], step = 1e-6;
          values[i] = value + step;
          const double above = dot(by_the_formula(problem), problem.grad_columns);
          values[i] = value - step;
          const double below = dot(by_the_formula(problem), problem.grad_columns);
          values[i] = value;
          CHECK_CLOSE(grads[i], (above - below) / (2 * step), 1e-5, 1e-6);
        }
      };
      check_values(problem.position, analytic.position);
      check_values(problem.sigma, analytic.sigma);
    }
  }
}

TEST(any_number_of_threads) {
  const Im2colProblem problem(Version::kGauss, {{40, 41}, {9, 9}, {1, 1}, {4, 4}, 9, 8, 5});
  const Im2colResults one = problem.on_cpu<float>(1);
  for (const int threads : {2, 3, 8, std::numeric_limits<int>::max()}) {
    const Im2colResults many = problem.on_cpu<float>(threads);
    CHECK_SAME_BITS(many.columns, one.columns);
    CHECK_SAME_BITS(many.input, one.input);
    CHECK_SAME_BITS(many.position, one.position);
    CHECK_SAME_BITS(many.sigma, one.sigma);
  }
}

TEST(a_part_of_the_outputs) {
  // The rows from the second on, as im2col.hpp says: a problem with another padding.
  const Im2colProblem whole(Version::kV1, {{9, 8}, {5, 4}, {2, 1}, {2, 2}, 1, 1, 1});
  Im2colProblem part = whole;
  part.args.padding[0] -= part.args.stride[0];
  part.args.output_size[0] -= 1;
  part.args.any_output_size = true;
  part.grad_columns.resize(static_cast<std::size_t>(part.args.output_size[0]) *
                           static_cast<std::size_t>(part.args.output_size[1]));
  const std::vector<double> all = whole.on_cpu<double>().columns;
  const std::vector<double> some = part.on_cpu<double>().columns;
  CHECK_EQ(some.size() + static_cast<std::size_t>(whole.args.output_size[1]), all.size());
  const std::vector<double> behind(all.end() - static_cast<std::ptrdiff_t>(some.size()), all.end());
  CHECK_SAME_BITS(some, behind);
}

TEST(bad_arguments) {
  const float value = 0;
  float columns[64] = {};
  const auto args_for = [&](auto&& change) {
    Im2colArgs args;
    args.ndim = 1;
    args.size[0] = 3;
    args.input_size[0] = 1;
    args.padding[0] = 1;
    args.batch = args.channels = args.elements = 1;
    args.sigma_min = 0.27;
    args.input = args.position = args.sigma = &value;
    change(args);
    return args;
  };
  const auto bad = [&](const char* part, auto&& change) {
    CHECK_THROWS(std::invalid_argument, part, im2col(args_for(change), columns, nullptr, {}));
  };
  using A = Im2colArgs;
  im2col(args_for([](A&) {}), columns, nullptr, {});
  bad("ndim must be between 1 and 3, got 0", [](A& a) { a.ndim = 0; });
  bad("size[0] must be between 1", [](A& a) { a.size[0] = 0; });
  bad("stride[0] must be between 1", [](A& a) { a.stride[0] = 0; });
  bad("padding[0] must be between", [](A& a) { a.padding[0] = std::int64_t{1} << 40; });
  bad("input_size[0] must be between 0", [](A& a) { a.input_size[0] = -1; });
  bad("output_size[0] must be between 1", [](A& a) { a.output_size[0] = 0; });
  bad("size[0] reaches over 3 points, and input_size[0]", [](A& a) { a.padding[0] = 0; });
  bad("batch must be between 0", [](A& a) { a.batch = -1; });
  bad("channels must be between 0", [](A& a) { a.channels = -1; });
  bad("elements must be between 0", [](A& a) { a.elements = -1; });
  bad("batch_stride must be between 0", [](A& a) { a.batch = 2, a.batch_stride = -1; });
  bad("channel_stride must be between 0", [](A& a) { a.channels = 2, a.channel_stride = -1; });
  bad("columns is too large", [](A& a) { a.batch = a.elements = std::int64_t{1} << 31; });
  bad("taps of all elements is too large", [](A& a) { a.elements = std::int64_t{1} << 61; });
  bad("input must not be null", [](A& a) { a.input = nullptr; });
  bad("position must not be null", [](A& a) { a.position = nullptr; });
  bad("sigma must not be null", [](A& a) { a.sigma = nullptr; });
  bad("sigma must be null", [](A& a) { a.version = Version::kV1; });
  bad("sigma_min must be finite and positive", [](A& a) { a.sigma_min = 0; });
  bad("dtype has no enumerator 4", [](A& a) { a.dtype = static_cast<DType>(4); });
  bad("version has no enumerator 9", [](A& a) { a.version = static_cast<Version>(9); });
  const Im2colArgs good = args_for([](A&) {});
  CHECK_THROWS(std::invalid_argument, "columns must not be null",
               im2col(good, nullptr, nullptr, {}));
  Im2colGrads grads;
  float grad_input[4] = {}, sums[3] = {};
  grads.input = grad_input;
  grads.sums = sums;
  CHECK_THROWS(std::invalid_argument, "grad_columns must not be null",
               im2col_backward(good, nullptr, grads, nullptr, {}));
  grads.parts = 0;
  CHECK_THROWS(std::invalid_argument, "grads.parts must be between 1",
               im2col_backward(good, columns, grads, nullptr, {}));
  grads.parts = 1;
  const Im2colArgs two = args_for([](A& a) { a.batch = 2; });
  grads.batch_stride = 0;
  CHECK_THROWS(std::invalid_argument, "grads.batch_stride must be between 1",
               im2col_backward(two, columns, grads, nullptr, {}));
  const Im2colArgs v1 = args_for([](A& a) { a.version = Version::kV1, a.sigma = nullptr; });
  grads.sigma = true;
  CHECK_THROWS(std::invalid_argument, "grads.sigma must be false",
               im2col_backward(v1, columns, grads, nullptr, {}));
  CHECK_THROWS(std::invalid_argument, "grad_sigma must be null",
               im2col_finish(v1, sums, 1, nullptr, grad_input, nullptr, {}));
  CHECK_THROWS(std::invalid_argument, "sums must not be null",
               im2col_finish(good, nullptr, 1, grad_input, nullptr, nullptr, {}));
  CHECK_THROWS(std::invalid_argument, "the sums is too large",
               im2col_finish(good, sums, std::int64_t{1} << 60, grad_input, nullptr, nullptr, {}));
  // Nothing to compute, however large the one number is that is not 0.
  grads.sigma = false;
  const Im2colArgs none = args_for([](A& a) {
    a.channels = std::numeric_limits<std::int64_t>::max();
    a.batch = a.elements = a.channel_stride = 0;
    a.input_size[0] = 0;
    a.any_output_size = true;
  });
  im2col_backward(none, nullptr, grads, nullptr, {});
}

/// With UBSan: strides of an input that is not there must not move its pointer.
TEST(no_input_points) {
  float columns[] = {1, 1, 1, 1};
  Im2colArgs args;
  args.ndim = 1;
  args.size[0] = args.output_size[0] = 1;
  args.any_output_size = true;
  args.padding[0] = 1;
  args.input_size[0] = 0;
  args.batch = args.channels = 2;
  args.elements = 1;
  args.batch_stride = args.channel_stride = 7;
  args.sigma_min = 0.27;
  const float positions[] = {0, 0}, sigmas[] = {0.5f, 0.5f};
  args.position = positions;
  args.sigma = sigmas;
  im2col(args, columns, nullptr, {});
  for (const float value : columns) CHECK(value == 0);
}

CHECK_MAIN()
