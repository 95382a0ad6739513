// Kernels, columns and their gradients by the plainest of loops in float64, each with a bound of
// what rounded arithmetic may add: the same rules as in tests/fuzz/bounds.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "construct_problem.hpp"
#include "im2col_problem.hpp"

namespace dcls::test {

/// A value, and its error in units of the relative rounding error of the arithmetic under test.
struct Bound {
  double value = 0, error = 0;
};

inline Bound operator*(Bound a, Bound b) {
  const double product = a.value * b.value;
  return {product, std::abs(a.value) * b.error + std::abs(b.value) * a.error + std::abs(product)};
}
inline Bound operator/(Bound a, Bound b) {
  const double ratio = a.value / b.value;
  return {ratio, (a.error + std::abs(ratio) * b.error) / std::abs(b.value) + std::abs(ratio)};
}
inline Bound operator-(Bound a, Bound b) {
  return {a.value - b.value, a.error + b.error + std::abs(a.value) + std::abs(b.value)};
}

/// A sum of any order: each of its `terms` may be rounded as often as there are terms.
struct Sum {
  Bound total;
  double magnitude = 0, terms = 0;
  void add(Bound term) {
    total.value += term.value;
    total.error += term.error;
    magnitude += std::abs(term.value);
    terms += 1;
  }
  Bound bound() const { return {total.value, total.error + terms * magnitude}; }
};

/// A tap and its derivatives by position and width.
struct TapBound {
  Bound value, by_position, by_width;
};

/// The tap of a version at grid point x, for a position and a width.
inline TapBound tap_bound(Version version, double x, double p, double sigma) {
  constexpr double kRoundings = 8;  // distance, division, square, product, exponential
  const double a = std::abs(x - p);
  const double toward = x > p ? 1 : x < p ? -1 : 0;
  switch (version) {
    case Version::kV0: {
      const double low = std::floor(p), fraction = p - low;
      if (x == low) return {{1 - fraction, kRoundings}, {-1, 0}, {}};
      if (x == low + 1) return {{fraction, kRoundings}, {1, 0}, {}};
      return {};
    }
    case Version::kV1:
      if (a >= 1) return {};
      return {{1 - a, kRoundings}, {toward, 0}, {}};
    case Version::kMax:
      if (a >= sigma) return {};
      return {{sigma - a, kRoundings * sigma}, {toward, 0}, {1, 0}};
    case Version::kGauss: {
      const double z = (x - p) / sigma, value = std::exp(-z * z / 2);
      const double relative = kRoundings + 4 * z * z;  // the exponent has roundings, too
      const auto of = [&](double v) { return Bound{v, relative * std::abs(v)}; };
      return {of(value), of(value * z / sigma), of(value * z * z / sigma)};
    }
    case Version::kSpline: {
      if (a >= 2) return {};
      const double far = 2 - a;
      const double value = a < 1 ? 2.0 / 3 - a * a + a * a * a / 2 : far * far * far / 6;
      const double slope = a < 1 ? 2 * a - 1.5 * a * a : far * far / 2;
      return {{value, kRoundings}, {toward * slope, kRoundings}, {}};
    }
  }
  throw std::logic_error("no formula for this version");
}

struct ElementBounds {
  std::vector<Bound> value;  ///< of each cell
  std::vector<Bound> by_position[kMaxDims], by_width[kMaxDims];
};

/// An element of weight 1 on its grid. `position` and `width` have one number for each axis.
inline ElementBounds element_bounds(Version version, int ndim, const std::int64_t* size,
                                    const double* position, const double* width, double eps) {
  std::vector<TapBound> taps[kMaxDims];
  TapBound sums[kMaxDims];
  std::int64_t cells = 1;
  for (int d = 0; d < ndim; ++d) {
    cells *= size[d];
    double most = 0;
    for (std::int64_t x = 0; x < size[d]; ++x) {
      taps[d].push_back(tap_bound(version, static_cast<double>(x),
                                  position[d] + static_cast<double>(size[d] / 2), width[d]));
      most = std::max(most, taps[d].back().value.value);
    }
    if (version == Version::kGauss) {
      // Taps below this part of the largest may be dropped, and taps that are no normal numbers:
      // all of them is error then.
      const bool is_double = eps < 1e-10;
      const double part = is_double ? 3.1e-20 : 1.1e-10;
      const double lowest = is_double ? 1.01 * std::exp(kLowestExponent<double>)
                                      : 1.01 * std::exp(kLowestExponent<float>);
      for (TapBound& tap : taps[d]) {
        if (tap.value.value > std::max(part * most, lowest)) continue;
        for (Bound* const bound : {&tap.value, &tap.by_position, &tap.by_width}) {
          bound->error += std::abs(bound->value) / eps;
        }
      }
    }
    Sum value, slope, spread;
    for (const TapBound& tap : taps[d]) {
      value.add(tap.value);
      slope.add(tap.by_position);
      spread.add(tap.by_width);
    }
    sums[d] = {value.bound(), slope.bound(), spread.bound()};
  }
  /// The product of the taps, or of their sums, with a derivative on one axis.
  const auto product = [&](const auto& at, int moved, bool by_width) {
    Bound all{1, 0};
    for (int d = 0; d < ndim; ++d) {
      const TapBound& tap = at(d);
      all = all * (d != moved ? tap.value : by_width ? tap.by_width : tap.by_position);
    }
    return all;
  };
  const auto of_sums = [&](int d) -> const TapBound& { return sums[d]; };
  const bool normalised = interp::is_normalised(version);
  Bound norm = product(of_sums, -1, false);
  norm = normalised ? Bound{norm.value + 1e-7, norm.error + norm.value} : Bound{1, 0};
  ElementBounds element;
  for (std::int64_t cell = 0; cell < cells; ++cell) {
    std::int64_t at[kMaxDims] = {}, rest = cell;
    for (int d = ndim - 1; d >= 0; --d) {
      at[d] = rest % size[d];
      rest /= size[d];
    }
    const auto of_taps = [&](int d) -> const TapBound& {
      return taps[d][static_cast<std::size_t>(at[d])];
    };
    const Bound value = product(of_taps, -1, false) / norm;
    element.value.push_back(value);
    for (int d = 0; d < ndim; ++d) {
      for (const bool by_width : {false, true}) {
        Bound change = product(of_taps, d, by_width) / norm;
        if (normalised) change = change - value * product(of_sums, d, by_width) / norm;
        (by_width ? element.by_width : element.by_position)[d].push_back(change);
      }
    }
  }
  return element;
}

inline double sign_of(double value) { return value > 0 ? 1 : value < 0 ? -1 : 0; }

struct ConstructBounds {
  std::vector<Bound> kernel, weight, position, sigma;
};

/// The kernel and its gradients for grad_kernel, in arithmetic of rounding error eps.
inline ConstructBounds by_the_formula(const ConstructProblem& problem, double eps) {
  const ConstructArgs& a = problem.args;
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  const std::int64_t cells = problem.cells(), pairs = a.rows * a.elements;
  std::vector<Sum> kernel(at(a.rows * cells));
  ConstructBounds bounds;
  bounds.weight.resize(at(pairs));
  bounds.position.resize(at(a.ndim * pairs));
  bounds.sigma.resize(problem.sigma.size());
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    double p[kMaxDims] = {}, width[kMaxDims] = {};
    for (int d = 0; d < a.ndim; ++d) {
      p[d] = problem.position[at(d * pairs + pair)];
      if (!problem.sigma.empty()) {
        width[d] = std::abs(problem.sigma[at(d * pairs + pair)]) + a.sigma_min;
      }
    }
    const ElementBounds element = element_bounds(a.version, a.ndim, a.size, p, width, eps);
    const Bound weight{problem.weight[at(pair)], 0};
    Sum by_weight, by_position[kMaxDims], by_width[kMaxDims];
    for (std::int64_t cell = 0; cell < cells; ++cell) {
      const std::int64_t place = pair / a.elements * cells + cell;
      const Bound g{problem.grad_kernel[at(place)], 0};
      kernel[at(place)].add(weight * element.value[at(cell)]);
      by_weight.add(g * element.value[at(cell)]);
      for (int d = 0; d < a.ndim; ++d) {
        by_position[d].add(g * weight * element.by_position[d][at(cell)]);
        by_width[d].add(g * weight * element.by_width[d][at(cell)]);
      }
    }
    bounds.weight[at(pair)] = by_weight.bound();
    for (int d = 0; d < a.ndim; ++d) {
      const std::size_t row = at(d * pairs + pair);
      bounds.position[row] = by_position[d].bound();
      if (!problem.sigma.empty()) {
        bounds.sigma[row] = by_width[d].bound();
        bounds.sigma[row].value *= sign_of(problem.sigma[row]);
      }
    }
  }
  for (const Sum& sum : kernel) bounds.kernel.push_back(sum.bound());
  return bounds;
}

struct Im2colBounds {
  std::vector<Bound> columns, input, position, sigma;
};

/// The columns and their gradients for grad_columns.
inline Im2colBounds by_the_formula(const Im2colProblem& problem, double eps) {
  const Im2colArgs& a = problem.args;
  const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
  const std::int64_t pairs = a.channels * a.elements;
  std::int64_t cells = 1, outputs = 1;
  for (int d = 0; d < a.ndim; ++d) {
    cells *= a.size[d];
    outputs *= a.output_size[d];
  }
  Im2colBounds bounds;
  bounds.columns.resize(problem.grad_columns.size());
  bounds.position.resize(at(a.ndim * pairs));
  bounds.sigma.resize(problem.sigma.size());
  std::vector<Sum> grad_input(problem.input.size());
  for (std::int64_t pair = 0; pair < pairs; ++pair) {
    double p[kMaxDims] = {}, width[kMaxDims] = {};
    for (int d = 0; d < a.ndim; ++d) {
      p[d] = problem.position[at(d * pairs + pair)];
      if (!problem.sigma.empty()) {
        width[d] = std::abs(problem.sigma[at(d * pairs + pair)]) + a.sigma_min;
      }
    }
    const ElementBounds element = element_bounds(a.version, a.ndim, a.size, p, width, eps);
    Sum by_position[kMaxDims], by_width[kMaxDims];
    for (std::int64_t index = 0; index < a.batch * outputs; ++index) {
      const std::int64_t n = index / outputs, out = index % outputs;
      const std::int64_t column = (n * pairs + pair) * outputs + out;
      const Bound g{problem.grad_columns[at(column)], 0};
      Sum sum;
      for (std::int64_t cell = 0; cell < cells; ++cell) {
        std::int64_t o = out, x = cell, place = 0, pitch = 1;
        bool inside = true;
        for (int d = a.ndim - 1; d >= 0; --d) {
          const std::int64_t point =
              o % a.output_size[d] * a.stride[d] - a.padding[d] + x % a.size[d];
          inside = inside && point >= 0 && point < a.input_size[d];
          place += point * pitch;
          pitch *= a.input_size[d];
          o /= a.output_size[d];
          x /= a.size[d];
        }
        if (!inside) continue;
        const std::int64_t source =
            n * a.batch_stride + pair / a.elements * a.channel_stride + place;
        const Bound value{problem.input[at(source)], 0};
        sum.add(element.value[at(cell)] * value);
        grad_input[at(source)].add(element.value[at(cell)] * g);
        for (int d = 0; d < a.ndim; ++d) {
          by_position[d].add(g * value * element.by_position[d][at(cell)]);
          by_width[d].add(g * value * element.by_width[d][at(cell)]);
        }
      }
      bounds.columns[at(column)] = sum.bound();
    }
    for (int d = 0; d < a.ndim; ++d) {
      const std::size_t row = at(d * pairs + pair);
      bounds.position[row] = by_position[d].bound();
      if (!problem.sigma.empty()) {
        bounds.sigma[row] = by_width[d].bound();
        bounds.sigma[row].value *= sign_of(problem.sigma[row]);
      }
    }
  }
  for (const Sum& sum : grad_input) bounds.input.push_back(sum.bound());
  return bounds;
}

}  // namespace dcls::test
