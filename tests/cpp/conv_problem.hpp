// A convolution in float64, to be given to a back end in any dtype and layout, and the same by the
// plainest of loops.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "dcls/conv.hpp"

namespace dcls::test {

struct ConvResults {
  std::vector<double> output, grad_input, grad_kernel;
};

/// Every tensor is kept channels first; store() brings it into the layout of `args`.
struct ConvProblem {
  ConvArgs args;
  std::vector<double> input, kernel, bias, grad_output;
  std::vector<std::uint8_t> support;

  static std::int64_t points(const std::int64_t (&size)[kMaxDims], int ndim) {
    std::int64_t product = 1;
    for (int d = 0; d < ndim; ++d) product *= size[d];
    return product;
  }
  std::int64_t input_points() const { return points(args.input_size, args.ndim); }
  std::int64_t output_points() const { return points(args.output_size, args.ndim); }
  std::int64_t cells() const { return points(args.kernel_size, args.ndim); }
  std::int64_t in_group() const { return args.in_channels / args.groups; }
  std::int64_t out_group() const { return args.out_channels / args.groups; }

  /// The output size that torch gives, at least 0.
  static void set_usual_output(ConvArgs& a) {
    for (int d = 0; d < a.ndim; ++d) {
      const std::int64_t room =
          a.input_size[d] + 2 * a.padding[d] - a.dilation[d] * (a.kernel_size[d] - 1) - 1;
      a.output_size[d] = room < 0 ? 0 : room / a.stride[d] + 1;
    }
  }

  /// Random values of few bits, which every dtype holds exactly. `density` of the cells are not 0;
  /// the support has them and some more.
  explicit ConvProblem(const ConvArgs& problem, unsigned seed = 0, double density = 0.4)
      : args(problem) {
    std::mt19937 engine(seed);
    std::uniform_real_distribution<double> uniform;
    const auto draw = [&](std::int64_t count) {
      std::vector<double> values(static_cast<std::size_t>(count));
      for (double& v : values) v = std::floor(uniform(engine) * 31 - 15) / 8;
      return values;
    };
    input = draw(args.batch * args.in_channels * input_points());
    grad_output = draw(args.batch * args.out_channels * output_points());
    bias = draw(args.out_channels);
    kernel = draw(args.out_channels * in_group() * cells());
    for (double& w : kernel) {
      if (uniform(engine) > density) w = 0;
      support.push_back(w != 0 || uniform(engine) < 0.1 ? 1 : 0);
    }
  }

  std::string name() const {
    const auto list = [&](const std::int64_t (&values)[kMaxDims]) {
      std::string text = "(";
      for (int d = 0; d < args.ndim; ++d) text += (d ? " " : "") + std::to_string(values[d]);
      return text + ")";
    };
    return "batch " + std::to_string(args.batch) + ", channels " +
           std::to_string(args.in_channels) + " to " + std::to_string(args.out_channels) +
           ", groups " + std::to_string(args.groups) + ", input " + list(args.input_size) +
           ", output " + list(args.output_size) + ", kernel " + list(args.kernel_size) +
           ", stride " + list(args.stride) + ", padding " + list(args.padding) + ", dilation " +
           list(args.dilation) + (args.layout == Layout::kChannelsLast ? ", channels last" : "");
  }

  /// A tensor of the input's or the output's form in the layout of the problem.
  template <typename Storage>
  std::vector<Storage> store(const std::vector<double>& values, std::int64_t channels) const {
    return to_storage<Storage>(transpose(values, channels, /*back=*/false));
  }
  /// And back.
  template <typename Range>
  std::vector<double> read(const Range& stored, std::int64_t channels) const {
    return transpose(to_double(stored), channels, /*back=*/true);
  }

  /// By the definition in dcls/conv.hpp.
  ConvResults by_the_formula() const {
    ConvResults r;
    r.output.assign(grad_output.size(), 0.0);
    r.grad_input.assign(input.size(), 0.0);
    r.grad_kernel.assign(kernel.size(), 0.0);
    const std::int64_t in_points = input_points(), out_points = output_points(), size = cells();
    for (std::int64_t n = 0; n < args.batch; ++n) {
      for (std::int64_t o = 0; o < args.out_channels; ++o) {
        const std::int64_t out_base = (n * args.out_channels + o) * out_points;
        for (std::int64_t y = 0; y < out_points; ++y) r.output[at(out_base + y)] = bias[at(o)];
        for (std::int64_t i = 0; i < in_group(); ++i) {
          const std::int64_t in_base =
              (n * args.in_channels + o / out_group() * in_group() + i) * in_points;
          for (std::int64_t y = 0; y < out_points; ++y) {
            for (std::int64_t c = 0; c < size; ++c) {
              const std::int64_t x = reads(y, c);
              if (x < 0) continue;
              const std::int64_t cell = (o * in_group() + i) * size + c;
              const double g = grad_output[at(out_base + y)];
              r.output[at(out_base + y)] += kernel[at(cell)] * input[at(in_base + x)];
              r.grad_input[at(in_base + x)] += kernel[at(cell)] * g;
              if (support[at(cell)]) r.grad_kernel[at(cell)] += g * input[at(in_base + x)];
            }
          }
        }
      }
    }
    return r;
  }

  template <typename Storage>
  ConvResults on_cpu(int num_threads = 2) const {
    return by_the_library<Storage>(cpu_threads(num_threads));
  }

  /// The problem in `Storage` by dcls/conv.hpp.
  template <typename Storage, typename Memory = Vectors>
  ConvResults by_the_library(const Execution& where) const {
    ConvArgs call = args;
    call.dtype = DTypeOf<Storage>::value;
    using Tensor = typename Memory::template Buffer<Storage>;
    const Tensor x(store<Storage>(input, args.in_channels)),
        g(store<Storage>(grad_output, args.out_channels)), w(to_storage<Storage>(kernel)),
        b(to_storage<Storage>(bias));
    const typename Memory::template Buffer<std::uint8_t> marks(support);
    Tensor output(g.size()), grad_input(x.size()), grad_kernel(w.size());
    const auto bytes = [&](ConvPass pass) { return direct_conv_workspace(call, pass, where); };
    Workspace<Memory> forward(bytes(ConvPass::kForward)),
        backward_input(bytes(ConvPass::kBackwardInput)),
        backward_kernel(bytes(ConvPass::kBackwardKernel));
    direct_conv(call, x.data(), w.data(), b.data(), output.data(), forward.data(), where);
    direct_conv_backward_input(call, g.data(), w.data(), grad_input.data(), backward_input.data(),
                               where);
    direct_conv_backward_kernel(call, g.data(), x.data(), marks.data(), grad_kernel.data(),
                                backward_kernel.data(), where);
    return {read(output, args.out_channels), read(grad_input, args.in_channels),
            to_double(grad_kernel)};
  }

 private:
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  /// The input point that output point y reads through a cell, or -1 outside.
  std::int64_t reads(std::int64_t y, std::int64_t cell) const {
    std::int64_t point = 0, pitch = 1;
    for (int d = args.ndim - 1; d >= 0; --d) {
      const std::int64_t x = args.stride[d] * (y % args.output_size[d]) - args.padding[d] +
                             args.dilation[d] * (cell % args.kernel_size[d]);
      if (x < 0 || x >= args.input_size[d]) return -1;
      point += x * pitch;
      pitch *= args.input_size[d];
      y /= args.output_size[d];
      cell /= args.kernel_size[d];
    }
    return point;
  }

  std::vector<double> transpose(const std::vector<double>& values, std::int64_t channels,
                                bool back) const {
    if (args.layout == Layout::kChannelsFirst || values.empty()) return values;
    std::vector<double> moved(values.size());
    const std::int64_t points = static_cast<std::int64_t>(values.size()) / (args.batch * channels);
    for (std::int64_t n = 0; n < args.batch; ++n) {
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t p = 0; p < points; ++p) {
          const std::size_t first = at((n * channels + c) * points + p);
          const std::size_t last = at((n * points + p) * channels + c);
          moved[back ? first : last] = values[back ? last : first];
        }
      }
    }
    return moved;
  }
};

/// Compares what a back end computed in `Storage` with the formula.
template <typename Storage>
void check_results(const ConvProblem& problem, const ConvResults& got) {
  const check::Case here(problem.name(), ", dtype ", static_cast<int>(DTypeOf<Storage>::value));
  const double tolerance = sizeof(Storage) == 8 ? 1e-14 : DTypeOf<Storage>::tolerance;
  const ConvResults expected = problem.by_the_formula();
  CHECK(relative_error(got.output, expected.output) < tolerance);
  CHECK(relative_error(got.grad_input, expected.grad_input) < tolerance);
  CHECK(relative_error(got.grad_kernel, expected.grad_kernel) < tolerance);
  for (std::size_t i = 0; i < got.grad_kernel.size(); ++i) {
    if (problem.support[i] == 0) CHECK_EQ(got.grad_kernel[i], 0.0);
  }
}

inline void check_same_bits(const ConvResults& got, const ConvResults& expected) {
  CHECK_SAME_BITS(got.output, expected.output);
  CHECK_SAME_BITS(got.grad_input, expected.grad_input);
  CHECK_SAME_BITS(got.grad_kernel, expected.grad_kernel);
}

/// Which of the values are infinite, and which NaN.
inline std::vector<int> kinds(const std::vector<double>& values) {
  std::vector<int> kinds;
  for (const double v : values) kinds.push_back(std::isnan(v) ? 3 : std::isinf(v) ? 1 : 0);
  return kinds;
}

/// Infinite values in a problem of `args` without zeros reach what the formula says, and nothing
/// else: run(problem) gives the results of a back end.
template <typename Run>
void check_infinities(const ConvArgs& args, const Run& run) {
  ConvProblem plain(args, 7);
  for (auto* values : {&plain.input, &plain.kernel, &plain.grad_output}) {
    for (double& v : *values) v = v < 0 ? -1 : 1;
  }
  for (auto& mark : plain.support) mark = 1;
  const check::Case here(plain.name());
  for (const bool in_kernel : {false, true}) {
    for (const int part : {0, 1, 2, 4}) {
      ConvProblem problem = plain;
      std::vector<double>& changed = in_kernel ? problem.kernel : problem.input;
      const std::size_t place = (changed.size() - 1) * static_cast<std::size_t>(part) / 4;
      changed[place] = part == 1 ? std::nan("") : HUGE_VAL;
      const check::Case where(in_kernel ? "kernel " : "input ", place);
      const ConvResults got = run(problem), expected = problem.by_the_formula();
      CHECK(kinds(got.grad_input) == kinds(expected.grad_input));
      CHECK(kinds(got.grad_kernel) == kinds(expected.grad_kernel));
      // In the forward pass padding is zeros, which an infinite weight makes NaN.
      if (!in_kernel) CHECK(kinds(got.output) == kinds(expected.output));
    }
  }
}

/// Arguments with the usual output size.
inline ConvArgs conv_args(std::int64_t batch, std::int64_t in_channels, std::int64_t out_channels,
                          std::int64_t groups, const std::vector<std::int64_t>& input,
                          const std::vector<std::int64_t>& kernel,
                          const std::vector<std::int64_t>& padding = {},
                          const std::vector<std::int64_t>& stride = {},
                          const std::vector<std::int64_t>& dilation = {},
                          Layout layout = Layout::kChannelsFirst) {
  ConvArgs a;
  a.any_output_size = true;
  a.layout = layout;
  a.ndim = static_cast<int>(input.size());
  a.batch = batch;
  a.in_channels = in_channels;
  a.out_channels = out_channels;
  a.groups = groups;
  for (std::size_t d = 0; d < input.size(); ++d) {
    a.input_size[d] = input[d];
    a.kernel_size[d] = kernel[d];
    if (!padding.empty()) a.padding[d] = padding[d];
    if (!stride.empty()) a.stride[d] = stride[d];
    if (!dilation.empty()) a.dilation[d] = dilation[d];
  }
  ConvProblem::set_usual_output(a);
  return a;
}

/// Strides with many phases, of which some have no cell.
inline std::vector<ConvArgs> many_phases() {
  return {
      conv_args(1, 2, 2, 2, {200}, {64}, {3}, {64}),
      conv_args(2, 1, 2, 1, {700}, {3}, {1}, {100}, {7}),
      conv_args(1, 2, 2, 1, {90, 130}, {2, 70}, {1, 0}, {30, 65}),
      conv_args(1, 2, 2, 2, {40, 41}, {20, 21}, {2, 2}, {15, 14}, {2, 2}, Layout::kChannelsLast),
      conv_args(1, 1, 1, 1, {20, 21, 22}, {6, 5, 4}, {1, 1, 1}, {9, 6, 10}, {3, 4, 1}),
  };
}

inline std::vector<ConvArgs> typical_conv_args() {
  const Layout last = Layout::kChannelsLast;
  return {
      conv_args(2, 3, 3, 3, {40}, {9}, {4}),
      conv_args(2, 9, 9, 9, {40}, {9}, {4}, {2}, {1}, last),
      conv_args(2, 4, 6, 2, {30}, {25}, {12}),
      conv_args(2, 3, 3, 3, {15, 16}, {7, 5}, {3, 2}),
      conv_args(1, 10, 10, 10, {15, 16}, {7, 5}, {3, 2}, {}, {}, last),
      // Tensors that begin at the second half of a pair: they end where a page does.
      conv_args(1, 3, 3, 3, {15, 15}, {7, 5}, {3, 2}),
      conv_args(1, 5, 5, 5, {15, 15}, {7, 5}, {3, 2}, {}, {}, last),
      conv_args(2, 6, 4, 2, {9, 8}, {3, 3}, {1, 1}, {2, 2}),
      conv_args(2, 2, 2, 2, {5, 6, 7}, {3, 3, 3}, {1, 1, 1}),
      conv_args(1, 2, 4, 1, {5, 6, 7}, {3, 2, 3}, {1, 1, 1}, {2, 1, 2}, {1, 2, 1}, last),
  };
}

/// Any small geometry, the odd ones included.
inline ConvArgs random_conv_args(unsigned seed) {
  std::mt19937 engine(seed);
  const auto pick = [&](std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(engine);
  };
  ConvArgs a;
  a.any_output_size = true;
  a.layout = static_cast<Layout>(pick(0, 1));
  a.ndim = static_cast<int>(pick(1, 3));
  a.batch = pick(0, 9) == 0 ? 0 : pick(1, 3);
  a.groups = pick(1, 4) == 1 ? 1 : pick(1, 11);
  const std::int64_t most = a.groups > 3 ? 2 : 11;  // channels of a group
  const bool depthwise = pick(0, 1) == 0;
  a.in_channels = a.groups * (depthwise ? 1 : pick(1, most));
  a.out_channels = a.groups * (depthwise ? 1 : pick(1, most));
  const std::int64_t longest = a.ndim == 1 ? 60 : a.ndim == 2 ? 14 : 5;
  for (int d = 0; d < a.ndim; ++d) {
    a.input_size[d] = pick(0, 4) == 0 ? 1 : pick(1, longest);
    a.kernel_size[d] = pick(0, 3) == 0 ? pick(1, 2 * longest) : pick(1, longest);
    a.stride[d] = pick(0, 1) == 0 ? 1 : pick(1, 5);
    a.dilation[d] = pick(0, 1) == 0 ? 1 : pick(1, 5);
    a.padding[d] = pick(0, 3) == 0 ? pick(-3, 2 * longest) : pick(0, a.kernel_size[d]);
  }
  ConvProblem::set_usual_output(a);
  for (int d = 0; d < a.ndim; ++d) {
    // Any output size is allowed.
    if (a.output_size[d] == 0 || pick(0, 5) == 0) a.output_size[d] = pick(1, longest);
    if (a.output_size[d] > 2 * longest) a.output_size[d] = 2 * longest;
  }
  return a;
}

/// Strides beyond the end of the input, which then has fewer phases than the stride: none that is
/// empty may cost memory or time.
inline std::vector<ConvArgs> far_strides() {
  const std::int64_t far = std::int64_t{1} << 24;
  std::vector<ConvArgs> cases = {
      conv_args(2, 1, 1, 1, {27}, {15}, {-2}, {far}),
      conv_args(1, 2, 2, 2, {6, 7}, {4, 5}, {1, 3}, {far, far}, {}, Layout::kChannelsLast),
      conv_args(1, 3, 1, 1, {7, 0}, {12, 18}, {9, 16}, {3, 2}, {1, 3}),
  };
  for (ConvArgs& args : cases) {
    for (int d = 0; d < args.ndim; ++d) args.output_size[d] = 3 + 17 * d;
  }
  return cases;
}

/// Something is missing: the batch, channels of one side, or the points of an axis on one side.
inline std::vector<ConvArgs> empty_conv_args() {
  std::vector<ConvArgs> cases = {
      conv_args(0, 2, 2, 2, {5, 6}, {3, 3}, {1, 1}),
      conv_args(1, 3, 0, 1, {5}, {3}, {1}),
      conv_args(1, 0, 3, 1, {5}, {3}, {1}),
  };
  for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
    for (const std::vector<std::int64_t>& size :
         std::vector<std::vector<std::int64_t>>{{5}, {5, 8}, {4, 5, 6}}) {
      for (std::size_t d = 0; d < size.size(); ++d) {
        const std::vector<std::int64_t> three(size.size(), 3), two(size.size(), 2);
        ConvArgs args = conv_args(2, 4, 4, 4, size, three, two, {}, {}, layout);
        args.input_size[d] = 0;
        cases.push_back(args);
        std::swap(args.input_size[d], args.output_size[d]);
        cases.push_back(args);
      }
    }
  }
  return cases;
}

}  // namespace dcls::test
