// Fuzzes the values of the C++ API: construct, direct_conv, im2col and their gradients against
// plain loops in float64, the layer against its parts bit for bit, and each bit for bit with other
// numbers of threads. Inputs are of several tiles, strides and dilations go up to 64, and batches
// may be empty. It runs once with each instruction set that the host has.
//
//   fuzz_values [--seconds N] [--runs N] [--seed S]   a new seed unless given; it is printed
//   fuzz_values --case KIND,SEED                      one case, as a failure prints it
//   fuzz_values --corpus FILE                         the cases of a file, one a line
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "conv_problem.hpp"
#include "dcls/runtime.hpp"
#include "formulas.hpp"
#include "fuzz_again.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

using Engine = std::mt19937;

[[noreturn]] void fail(const std::string& what, const std::string& problem) {
  std::fprintf(stderr, "fuzz_values: %s\n  %s\n", what.c_str(), problem.c_str());
  fuzz::print_again();
  std::exit(1);
}

std::int64_t pick(Engine& engine, std::int64_t low, std::int64_t high) {
  // Not uniform_int_distribution: libraries differ in it, and a case is to stay the same.
  return low + static_cast<std::int64_t>(engine()) % (high - low + 1);
}

/// Small, or beside a place where vectors and tiles end.
std::int64_t length(Engine& engine, std::int64_t most) {
  if (pick(engine, 0, 1) == 0) return pick(engine, 1, std::min<std::int64_t>(most, 9));
  if (pick(engine, 0, 1) == 0) return pick(engine, 1, most);
  const std::int64_t edge = std::int64_t{8} << pick(engine, 0, 6);
  return std::max<std::int64_t>(1, std::min(most, edge + pick(engine, -1, 1)));
}

std::int64_t step(Engine& engine) {
  const std::int64_t kind = pick(engine, 0, 5);
  return kind < 3 ? 1 : kind < 5 ? pick(engine, 2, 3) : pick(engine, 1, 64);
}

/// Rounding errors of a dtype: of its arithmetic, and of its values.
template <typename Storage>
struct Rounding {
  static constexpr double compute = std::numeric_limits<Compute<Storage>>::epsilon();
  static constexpr double storage = sizeof(Storage) > 2                      ? compute
                                    : std::is_same<Storage, BFloat16>::value ? 1.0 / 128
                                                                             : 1.0 / 1024;
  static constexpr double tiny = std::is_same<Storage, Half>::value
                                     ? 6.2e-5
                                     : 1e10 * std::numeric_limits<Compute<Storage>>::min();
};

void check_bounds(const char* what, const std::vector<double>& got,
                  const std::vector<Bound>& expected, double compute, double storage, double tiny,
                  const std::string& problem) {
  if (got.size() != expected.size()) fail(std::string(what) + " has another size", problem);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const Bound& want = expected[i];
    const double error = compute * want.error;
    const double limit = error + storage * (std::abs(want.value) + error) + tiny;
    if (!(std::abs(got[i] - want.value) <= limit)) {
      char text[200];
      std::snprintf(text, sizeof text, "%s[%zu] is %.9g, not %.9g: at most %.3g off", what, i,
                    got[i], want.value, limit);
      fail(text, problem);
    }
  }
}

void check_same(const char* what, const std::vector<double>& a, const std::vector<double>& b,
                const std::string& problem) {
  if (a.size() != b.size() ||
      (!a.empty() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) != 0)) {
    fail(std::string(what) + " differs in its bits", problem);
  }
}

/// Calls `run` with a value of the storage type of a random dtype.
template <typename Run>
void with_dtype(Engine& engine, Run&& run) {
  switch (pick(engine, 0, 3)) {
    case 0: return run(0.0f);
    case 1: return run(0.0);
    case 2: return run(Half{});
    default: return run(BFloat16{});
  }
}

Version version_of(Engine& engine) {
  return kVersions[pick(engine, 0, static_cast<std::int64_t>(std::size(kVersions)) - 1)];
}

// ------------------------------------------------------------------------------------- the kinds

void fuzz_construct(unsigned seed) {
  Engine engine(seed);
  const auto ndim = static_cast<int>(pick(engine, 1, 3));
  const std::int64_t most[] = {600, 24, 9};
  std::vector<std::int64_t> size;
  for (int d = 0; d < ndim; ++d) size.push_back(length(engine, most[ndim - 1]));
  const Version version = version_of(engine);
  const std::int64_t rows = pick(engine, 0, 5), elements = pick(engine, 0, 6);
  const ConstructProblem problem(version, size, rows, elements, seed);
  with_dtype(engine, [&](auto value) {
    using Storage = decltype(value);
    using R = Rounding<Storage>;
    const std::string name =
        problem.name() + ", dtype " + std::to_string(static_cast<int>(DTypeOf<Storage>::value));
    const Results got = problem.on_cpu<Storage>(1);
    const ConstructBounds want = by_the_formula(problem, R::compute);
    const auto check = [&](const char* what, const auto& a, const auto& b) {
      check_bounds(what, a, b, R::compute, R::storage, R::tiny, name);
    };
    check("kernel", got.kernel, want.kernel);
    check("grad_weight", got.weight, want.weight);
    check("grad_position", got.position, want.position);
    check("grad_sigma", got.sigma, want.sigma);
    const Results more = problem.on_cpu<Storage>(3);
    check_same("kernel", got.kernel, more.kernel, name);
    check_same("grad_position", got.position, more.position, name);
    check_same("grad_sigma", got.sigma, more.sigma, name);
    check_same("grad_weight", got.weight, more.weight, name);
    if (got.support != more.support) fail("the support depends on threads", name);
    for (std::size_t i = 0; i < got.kernel.size(); ++i) {
      if (got.kernel[i] != 0 && got.support[i] == 0) fail("a cell is not in the support", name);
    }
  });
}

ConvArgs conv_of(Engine& engine) {
  for (;;) {
    ConvArgs a;
    a.any_output_size = true;
    a.layout = static_cast<Layout>(pick(engine, 0, 1));
    a.ndim = static_cast<int>(pick(engine, 1, 3));
    a.batch = pick(engine, 0, 9) == 0 ? 0 : pick(engine, 1, pick(engine, 0, 3) == 0 ? 17 : 3);
    a.groups = pick(engine, 0, 1) == 0 ? 1 : pick(engine, 1, 19);
    const bool depthwise = pick(engine, 0, 2) == 0;
    a.in_channels = a.groups * (depthwise ? 1 : pick(engine, 0, 9));
    a.out_channels = a.groups * (depthwise ? 1 : pick(engine, 0, 9));
    const std::int64_t most = a.ndim == 1 ? 700 : a.ndim == 2 ? 40 : 12;
    double products = static_cast<double>(a.batch * a.out_channels * (a.in_channels / a.groups));
    double values = static_cast<double>(a.batch * std::max(a.in_channels, a.out_channels));
    double out_values = values;
    for (int d = 0; d < a.ndim; ++d) {
      a.input_size[d] = pick(engine, 0, 30) == 0 ? 0 : length(engine, most);
      a.kernel_size[d] = length(engine, most / 2);
      a.stride[d] = step(engine);
      a.dilation[d] = step(engine);
      a.padding[d] = pick(engine, 0, 2) == 0 ? 0 : pick(engine, -2, 2 * a.kernel_size[d]);
    }
    ConvProblem::set_usual_output(a);
    for (int d = 0; d < a.ndim; ++d) {
      // Any output size is allowed.
      if (a.output_size[d] == 0 || pick(engine, 0, 5) == 0) a.output_size[d] = pick(engine, 0, 40);
      products *= static_cast<double>(a.output_size[d] * a.kernel_size[d]);
      values *= static_cast<double>(a.input_size[d]);
      out_values *= static_cast<double>(a.output_size[d]);
    }
    if (products <= 1e6 && values <= 1e5 && out_values <= 1e5) return a;
  }
}

/// What a dtype makes of numbers in float64.
template <typename Storage>
std::vector<double> rounded(const std::vector<double>& values) {
  return to_double(to_storage<Storage>(values));
}

void check_conv(const ConvProblem& problem, Engine& engine) {
  with_dtype(engine, [&](auto value) {
    using Storage = decltype(value);
    const std::string name =
        problem.name() + ", dtype " + std::to_string(static_cast<int>(DTypeOf<Storage>::value));
    // Inputs are eighths up to 2: products are 64ths up to 4, and float32 adds 2^16 of them without
    // any rounding. So only the result is rounded, and every bit of it is known.
    const ConvResults exact = problem.by_the_formula();
    const ConvResults got = problem.on_cpu<Storage>(1);
    check_same("output", got.output, rounded<Storage>(exact.output), name);
    check_same("grad_input", got.grad_input, rounded<Storage>(exact.grad_input), name);
    check_same("grad_kernel", got.grad_kernel, rounded<Storage>(exact.grad_kernel), name);
    const ConvResults more = problem.on_cpu<Storage>(3);
    check_same("output", got.output, more.output, name);
    check_same("grad_input", got.grad_input, more.grad_input, name);
    check_same("grad_kernel", got.grad_kernel, more.grad_kernel, name);
  });
}

void fuzz_conv(unsigned seed) {
  Engine engine(seed);
  const double densities[] = {0.02, 0.1, 0.4, 1.0};
  const ConvArgs args = conv_of(engine);
  check_conv(ConvProblem(args, seed, densities[pick(engine, 0, 3)]), engine);
}

/// Depthwise planes large enough, and kernels of cells enough, for the fast FIR algorithm.
void fuzz_dense_conv(unsigned seed) {
  Engine engine(seed);
  ConvArgs a;
  a.any_output_size = true;
  a.layout = static_cast<Layout>(pick(engine, 0, 1));
  a.ndim = 2;
  a.batch = pick(engine, 1, 2);
  a.groups = a.in_channels = a.out_channels = pick(engine, 1, 3);
  for (int d = 0; d < 2; ++d) {
    a.input_size[d] = pick(engine, 24, 70);
    a.kernel_size[d] = pick(engine, 9, 20);
    a.padding[d] = pick(engine, -2, 2 * a.kernel_size[d]);
    a.output_size[d] = pick(engine, 24, 60);
  }
  check_conv(ConvProblem(a, seed, pick(engine, 0, 1) == 0 ? 1.0 : 0.8), engine);
}

void fuzz_im2col(unsigned seed) {
  Engine engine(seed);
  Im2colShape shape;
  double products = 0;
  do {
    shape = {};
    const std::int64_t ndim = pick(engine, 1, 3), most = ndim == 1 ? 700 : ndim == 2 ? 40 : 10;
    shape.batch = pick(engine, 0, 9) == 0 ? 0 : pick(engine, 1, 3);
    shape.channels = pick(engine, 0, 5);
    shape.elements = pick(engine, 0, 5);
    products = static_cast<double>(shape.batch * shape.channels * shape.elements * ndim);
    for (std::int64_t d = 0; d < ndim; ++d) {
      const std::int64_t size = length(engine, most / 2), padding = pick(engine, 0, 2 * size);
      const std::int64_t input = std::max(length(engine, most), size - 2 * padding);
      const std::int64_t stride = step(engine);
      shape.size.push_back(size);
      shape.padding.push_back(padding);
      shape.stride.push_back(stride);
      shape.input.push_back(input);
      products *= static_cast<double>(((input + 2 * padding - size) / stride + 1) * size);
    }
  } while (products > 5e5);
  const Im2colProblem problem(version_of(engine), shape, seed);
  with_dtype(engine, [&](auto value) {
    using Storage = decltype(value);
    using R = Rounding<Storage>;
    using P = Rounding<Compute<Storage>>;
    const std::string name =
        problem.name() + ", dtype " + std::to_string(static_cast<int>(DTypeOf<Storage>::value));
    const Im2colResults got = problem.on_cpu<Storage>(1);
    const Im2colBounds want = by_the_formula(problem, R::compute);
    check_bounds("columns", got.columns, want.columns, R::compute, R::storage, R::tiny, name);
    check_bounds("grad_input", got.input, want.input, R::compute, R::storage, R::tiny, name);
    check_bounds("grad_position", got.position, want.position, R::compute, P::storage, P::tiny,
                 name);
    check_bounds("grad_sigma", got.sigma, want.sigma, R::compute, P::storage, P::tiny, name);
    const Im2colResults more = problem.on_cpu<Storage>(3);
    check_same("columns", got.columns, more.columns, name);
    check_same("grad_input", got.input, more.input, name);
    check_same("grad_position", got.position, more.position, name);
    check_same("grad_sigma", got.sigma, more.sigma, name);
  });
}

struct Kind {
  const char* name;
  void (*run)(unsigned seed);
};
constexpr Kind kKinds[] = {{"construct", fuzz_construct},
                           {"conv", fuzz_conv},
                           {"dense_conv", fuzz_dense_conv},
                           {"im2col", fuzz_im2col}};

void run_case(const Kind& kind, unsigned seed) {
  fuzz::again = "DCLS_SIMD=" + build_info().simd + " fuzz_values --case " + kind.name + "," +
                std::to_string(seed);
  kind.run(seed);
}

void run_named(const std::string& name) {
  const std::size_t comma = name.find(',');
  for (const Kind& kind : kKinds) {
    if (comma != std::string::npos && name.compare(0, comma, kind.name) == 0) {
      return run_case(kind, static_cast<unsigned>(std::stoul(name.substr(comma + 1))));
    }
  }
  std::fprintf(stderr, "fuzz_values: no case %s\n", name.c_str());
  std::exit(2);
}

void run_random(double seconds, unsigned long runs, unsigned seed) {
  const auto start = std::chrono::steady_clock::now();
  const auto passed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  Engine engine(seed);
  unsigned long count = 0;
  for (; count < runs && passed() < seconds; ++count) {
    run_case(kKinds[count % std::size(kKinds)], static_cast<unsigned>(engine()));
  }
  std::printf("fuzz_values: %lu cases with %s, seed %u\n", count, build_info().simd.c_str(), seed);
}

/// Runs `work` in a child for each instruction set; a wish in DCLS_SIMD leaves one.
template <typename Work>
int with_each_level(Work&& work) {
  if (std::getenv("DCLS_SIMD") != nullptr) {
    work();
    return 0;
  }
  constexpr int kNotHere = 77;
  int failed = 0;
  for (const char* level :
       {"baseline", "neon", "avx2", "avx512_256", "avx512bf16_256", "avx512", "avx512bf16"}) {
    std::fflush(nullptr);
    const pid_t child = fork();  // before any thread was started
    if (child == 0) {
      setenv("DCLS_SIMD", level, 1);
      try {
        build_info();
      } catch (const std::invalid_argument&) {
        std::exit(kNotHere);
      }
      work();
      std::exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNotHere) {
      std::printf("fuzz_values: this host has no %s\n", level);
    } else if (status != 0) {
      failed = 1;
    }
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 1e9;
  unsigned long runs = 150;
  unsigned seed = std::random_device()();
  std::vector<std::string> cases;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i], value = argv[i + 1];
    if (option == "--seconds") {
      seconds = std::stod(value);
      runs = std::numeric_limits<unsigned long>::max();
    } else if (option == "--runs") {
      runs = std::stoul(value);
    } else if (option == "--seed") {
      seed = static_cast<unsigned>(std::stoul(value));
    } else if (option == "--case") {
      cases.push_back(value);
    } else if (option == "--corpus") {
      std::ifstream file(value);
      for (std::string line; std::getline(file, line);) {
        if (!line.empty() && line[0] != '#') cases.push_back(line);
      }
      if (cases.empty()) {
        std::fprintf(stderr, "fuzz_values: no cases in %s\n", value.c_str());
        return 2;
      }
    } else {
      std::fprintf(stderr, "fuzz_values: no option %s\n", option.c_str());
      return 2;
    }
  }
  fuzz::on_sanitizer_death();
  return with_each_level([&] {
    for (const std::string& name : cases) run_named(name);
    if (cases.empty()) run_random(seconds, runs, seed);
  });
}
