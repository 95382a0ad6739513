// The C++ API with the CUDA back end on the host: launchers, their dispatch, and workspaces of
// exactly the size that the library asks for.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "conv_problem.hpp"
#include "core/conv_geometry.hpp"
#include "cuda/cuda_backend.hpp"
#include "cuda/runtime/launch.cuh"
#include "cuda_host.hpp"
#include "im2col_problem.hpp"

using namespace dcls;
using namespace dcls::test;

namespace {

struct Guarded {
  template <typename T>
  using Buffer = host_cuda::GuardedBuffer<T>;
};

template <typename Storage, typename Problem>
void check_problem(const Problem& problem) {
  Execution where;
  where.device = DeviceType::kCuda;
  check_results<Storage>(problem, problem.template by_the_library<Storage, Guarded>(where));
}

template <typename Problem>
void check_every_dtype(const Problem& problem) {
  check_problem<float>(problem);
  check_problem<double>(problem);
  check_problem<Half>(problem);
  check_problem<BFloat16>(problem);
}

}  // namespace

TEST(construct) {
  for (const Version version : kVersions) {
    for (const auto& size : std::vector<std::vector<std::int64_t>>{{7}, {6, 5}, {3, 4, 5}}) {
      check_every_dtype(ConstructProblem(version, size, 5, 3));
      check_problem<float>(ConstructProblem(version, size, 5, 0));
      check_problem<float>(ConstructProblem(version, size, 0, 3));
    }
    check_problem<double>(ConstructProblem(version, {40, 41}, 7, 9));
  }
}

TEST(conv_of_every_dtype) {
  for (const ConvArgs& args : typical_conv_args()) check_every_dtype(ConvProblem(args));
}

TEST(conv_of_random_geometries) {
  for (unsigned seed = 1000; seed < 1100; ++seed) {
    const check::Case here("seed ", seed);
    check_problem<double>(ConvProblem(random_conv_args(seed), seed));
  }
}

TEST(conv_in_stages) {
  check_problem<float>(ConvProblem(conv_args(1, 1, 1, 1, {90}, {700}, {350})));
  check_problem<float>(ConvProblem(conv_args(1, 1, 1, 1, {20, 20}, {80, 90}, {40, 45})));
}

TEST(conv_of_far_strides) {
  for (const ConvArgs& args : far_strides()) check_problem<double>(ConvProblem(args));
}

TEST(conv_of_nothing) {
  for (const ConvArgs& args : empty_conv_args()) check_problem<double>(ConvProblem(args));
}

TEST(conv_without_values_to_write_has_no_workspace_and_launches_nothing) {
  Execution where;
  where.device = DeviceType::kCuda;
  for (ConvArgs args : empty_conv_args()) {
    args.dtype = DType::kFloat64;
    const check::Case here(ConvProblem(args).name());
    const auto bytes = [&](ConvPass pass) {
      return cuda::direct_conv_workspace(args, pass, where);
    };
    if (geometry::no_output(args)) {
      CHECK_EQ(bytes(ConvPass::kForward), 0u);
      cuda::direct_conv(args, nullptr, nullptr, nullptr, nullptr, nullptr, where);
    }
    if (geometry::no_input(args)) {
      CHECK_EQ(bytes(ConvPass::kBackwardInput), 0u);
      cuda::direct_conv_backward_input(args, nullptr, nullptr, nullptr, nullptr, where);
    }
    if (args.in_channels * args.out_channels == 0) {
      CHECK_EQ(bytes(ConvPass::kBackwardKernel), 0u);
      cuda::direct_conv_backward_kernel(args, nullptr, nullptr, nullptr, nullptr, nullptr, where);
    }
  }
}

TEST(im2col) {
  for (const Version version : kVersions) {
    for (const Im2colShape& shape : kIm2colShapes) {
      check_problem<double>(Im2colProblem(version, shape));
      check_problem<float>(Im2colProblem(version, shape));
    }
  }
}

TEST(im2col_of_every_dtype_and_of_nothing) {
  for (Im2colShape shape : {kIm2colShapes[0], kIm2colShapes[4], kIm2colShapes[8]}) {
    check_every_dtype(Im2colProblem(Version::kGauss, shape));
    for (std::int64_t* count : {&shape.batch, &shape.channels, &shape.elements}) {
      const std::int64_t former = std::exchange(*count, 0);
      check_problem<float>(Im2colProblem(Version::kGauss, shape));
      *count = former;
    }
  }
}

/// So that all are loaded before a stream is captured.
TEST(every_kernel_launched_is_among_those_that_are_loaded_early) {
  const std::vector<const void*>& known = cuda::kernels();
  auto& record = host_cuda::detail::LaunchRecord::instance();
  CHECK(!record.counts.empty());
  for (const auto& [kernel, count] : record.counts) {
    CHECK(std::count(known.begin(), known.end(), kernel) > 0);
  }
  CHECK(known.size() >= record.counts.size());
}

CHECK_MAIN()
