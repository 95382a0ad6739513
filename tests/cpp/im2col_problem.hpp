// An im2col problem in float64, to be given to a back end in any dtype.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "dcls/im2col.hpp"
#include "interpolation/tap_table.hpp"

namespace dcls::test {

/// What a back end computes: the columns and the three gradients.
struct Im2colResults {
  std::vector<double> columns, input, position, sigma;
};

struct Im2colShape {
  std::vector<std::int64_t> input, size, stride, padding;
  std::int64_t batch = 2, channels = 3, elements = 2;
};

struct Im2colProblem {
  Im2colArgs args;  // without pointers
  std::vector<double> input, position, sigma, grad_columns;
  std::int64_t parts = 2;

  /// Random, with exact grid points (the kinks) and positions outside the grid among the rest. All
  /// values but the positions have eight bits, which every dtype holds exactly.
  Im2colProblem(Version version, const Im2colShape& shape, unsigned seed = 0) {
    args.version = version;
    args.ndim = static_cast<int>(shape.size.size());
    std::int64_t points = 1, outputs = 1;
    for (int d = 0; d < args.ndim; ++d) {
      const auto at = static_cast<std::size_t>(d);
      args.size[d] = shape.size[at];
      args.stride[d] = shape.stride[at];
      args.padding[d] = shape.padding[at];
      args.input_size[d] = shape.input[at];
      args.output_size[d] =
          (shape.input[at] + 2 * shape.padding[at] - shape.size[at]) / shape.stride[at] + 1;
      points *= args.input_size[d];
      outputs *= args.output_size[d];
    }
    args.batch = shape.batch;
    args.channels = shape.channels;
    args.elements = shape.elements;
    args.channel_stride = points;
    args.batch_stride = points * shape.channels;
    const bool has_width = interp::has_width(version);
    args.sigma_min = smallest_width(version);

    std::mt19937 engine(seed);
    std::normal_distribution<double> normal;
    const auto draw = [&](std::int64_t count) {
      std::vector<double> values(static_cast<std::size_t>(count));
      for (double& value : values) value = std::round(normal(engine) * 32) / 32;
      return values;
    };
    const std::int64_t pairs = shape.channels * shape.elements;
    input = draw(shape.batch * shape.channels * points);
    position = draw(args.ndim * pairs);
    for (std::size_t i = 0; i < position.size(); ++i) {
      const auto d = static_cast<int>(i / static_cast<std::size_t>(pairs));
      position[i] *= static_cast<double>(args.size[d]) / 4;
      position[i] = std::round(position[i] * 64) / 64;
      if (i % 7 == 0) position[i] = std::round(position[i]);
      if (i % 23 == 5) position[i] *= 64;
    }
    if (has_width) sigma = draw(args.ndim * pairs);
    grad_columns = draw(shape.batch * pairs * outputs);
  }

  std::size_t sum_values() const {
    return static_cast<std::size_t>(parts * args.channels * args.elements *
                                    tap_table::sums_of(args.ndim));
  }

  template <typename Storage>
  Im2colResults on_cpu(int num_threads = 2) const {
    return by_the_library<Storage>(cpu_threads(num_threads));
  }

  /// The problem in `Storage` by dcls/im2col.hpp.
  template <typename Storage, typename Memory = Vectors>
  Im2colResults by_the_library(const Execution& where) const {
    using T = Compute<Storage>;
    using Tensor = typename Memory::template Buffer<Storage>;
    using Elements = typename Memory::template Buffer<T>;
    const Tensor in(to_storage<Storage>(input)), grad(to_storage<Storage>(grad_columns));
    const Elements p(to_storage<T>(position)), s(to_storage<T>(sigma));
    Im2colArgs call = args;
    call.dtype = DTypeOf<Storage>::value;
    call.input = in.data();
    call.position = p.data();
    call.sigma = s.size() > 0 ? s.data() : nullptr;
    Tensor columns(grad.size()), grad_in(in.size());
    Elements sums(std::vector<T>(sum_values(), T(0))), grad_p(p.size()), grad_s(s.size());
    const auto bytes = static_cast<std::size_t>(im2col_workspace(call, where));
    Workspace<Memory> forward(bytes), backward(bytes), finish(bytes);
    im2col(call, columns.data(), forward.data(), where);
    Im2colGrads grads;
    grads.input = grad_in.data();
    grads.batch_stride = args.batch_stride;
    grads.channel_stride = args.channel_stride;
    grads.sums = sums.data();
    grads.parts = parts;
    grads.sigma = s.size() > 0;
    im2col_backward(call, grad.data(), grads, backward.data(), where);
    im2col_finish(call, sums.data(), parts, grad_p.data(), s.size() > 0 ? grad_s.data() : nullptr,
                  finish.data(), where);
    return {to_double(columns), to_double(grad_in), to_double(grad_p), to_double(grad_s)};
  }

  std::string name() const {
    std::string name = "version " + std::to_string(static_cast<int>(args.version)) + ", input";
    for (int d = 0; d < args.ndim; ++d) name += " " + std::to_string(args.input_size[d]);
    name += ", size";
    for (int d = 0; d < args.ndim; ++d) name += " " + std::to_string(args.size[d]);
    return name;
  }
};

/// Compares what a back end computed in `Storage` with the CPU back end.
template <typename Storage>
void check_results(const Im2colProblem& problem, const Im2colResults& got) {
  const check::Case here(problem.name(), ", dtype ", static_cast<int>(DTypeOf<Storage>::value));
  const double tolerance = DTypeOf<Storage>::tolerance * 5;  // gradients of positions cancel
  const Im2colResults expected = problem.on_cpu<double>();
  CHECK(relative_error(got.columns, expected.columns) < tolerance);
  CHECK(relative_error(got.input, expected.input) < tolerance);
  CHECK(relative_error(got.position, expected.position) < tolerance);
  CHECK(relative_error(got.sigma, expected.sigma) < tolerance);
}

/// One axis to three; strides, kernels larger than the input, one point, rows of several vectors.
inline const std::vector<Im2colShape> kIm2colShapes = {
    {{9}, {5}, {1}, {2}},
    {{300}, {24}, {1}, {12}, 1, 2, 3},
    {{11}, {4}, {3}, {1}},
    {{1}, {7}, {1}, {3}},
    {{6, 7}, {3, 4}, {1, 1}, {1, 2}},
    {{20, 21}, {9, 6}, {1, 1}, {4, 3}, 3, 2, 2},
    {{9, 8}, {2, 3}, {4, 2}, {0, 1}},
    {{2, 3}, {9, 11}, {1, 1}, {4, 5}, 1, 1, 1},
    {{4, 5, 6}, {3, 2, 5}, {1, 1, 1}, {1, 1, 2}},
    {{5, 4, 7}, {2, 3, 3}, {2, 1, 3}, {0, 1, 1}, 1, 2, 2},
};

}  // namespace dcls::test
