// The CUDA kernels of the construct operator, run on the host, against the CPU back end.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "core/dispatch.hpp"
#include "cuda/construct/construct_backward.cuh"
#include "cuda/construct/construct_forward.cuh"
#include "cuda/construct/construct_support.cuh"
#include "cuda_host/schedules.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

namespace {

struct Grids {
  unsigned forward = 0;  ///< blocks; 0 for one per item, as the library launches
  unsigned backward = 0;
};

template <typename Storage, int D>
Results on_host_cuda(const ConstructProblem& problem, const LaunchOptions& options = {},
                     Grids grids = {}, bool all_gradients = true) {
  const GuardedBuffer<Storage> weight(to_storage<Storage>(problem.weight), "weight");
  const GuardedBuffer<Storage> position(to_storage<Storage>(problem.position), "position");
  const GuardedBuffer<Storage> sigma(to_storage<Storage>(problem.sigma), "sigma");
  const GuardedBuffer<Storage> grad_kernel(to_storage<Storage>(problem.grad_kernel), "grad_kernel");
  GuardedBuffer<Storage> kernel(grad_kernel.size(), "kernel");
  GuardedBuffer<Storage> grad_weight(weight.size(), "grad_weight");
  GuardedBuffer<Storage> grad_position(position.size(), "grad_position");
  GuardedBuffer<Storage> grad_sigma(sigma.size(), "grad_sigma");
  ConstructArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  args.weight = weight.data();
  args.position = position.data();
  args.sigma = sigma.size() > 0 ? sigma.data() : nullptr;

  const cuda::ForwardPlan forward = cuda::make_forward_plan(args);
  const unsigned blocks = grids.forward > 0 ? grids.forward : static_cast<unsigned>(forward.items);
  host_cuda::launch(options, cuda::construct_forward<Storage, D>, blocks, cuda::kForwardThreads,
                    forward.shared_values() * sizeof(Compute<Storage>), args, forward,
                    static_cast<void*>(kernel.data()));
  kernel.check();
  ConstructGrads grads;
  grads.weight = all_gradients ? grad_weight.data() : nullptr;
  grads.position = grad_position.data();
  grads.sigma = all_gradients && sigma.size() > 0 ? grad_sigma.data() : nullptr;
  const cuda::BackwardPlan backward = cuda::make_backward_plan(args);
  if (backward.items > 0) {
    const unsigned groups = cuda::kBackwardGroups;
    host_cuda::launch(options, cuda::construct_backward<Storage, D>,
                      grids.backward > 0
                          ? grids.backward
                          : (static_cast<unsigned>(backward.items) + groups - 1) / groups,
                      cuda::kBackwardThreads, backward.shared_values() * sizeof(Compute<Storage>),
                      args, backward, static_cast<const void*>(grad_kernel.data()), grads);
  }
  for (const auto* buffer : {&grad_weight, &grad_position, &grad_sigma}) buffer->check();
  GuardedBuffer<std::uint8_t> support(kernel.size(), "support");
  args.weight = nullptr;
  const auto cells = static_cast<std::int64_t>(kernel.size());
  const unsigned threads = cuda::kSupportThreads;
  host_cuda::launch(
      options, cuda::construct_support_cells<Storage, D>,
      grids.forward > 0 ? grids.forward : (static_cast<unsigned>(cells) + threads - 1) / threads,
      threads, 0, args, cells, support.data());
  support.check();
  return {to_double(kernel), to_double(grad_weight), to_double(grad_position),
          to_double(grad_sigma), support.to_vector()};
}

template <typename Storage>
void check_against_cpu(const ConstructProblem& problem, Grids grids = {}) {
  dispatch_ndim(problem.args.ndim, [&](auto ndim) {
    check_results<Storage>(problem, on_host_cuda<Storage, ndim.value>(problem, {}, grids));
  });
}

}  // namespace

TEST(every_kernel_and_version) {
  for (const Version version : kVersions) {
    for (const auto& size : std::vector<std::vector<std::int64_t>>{{7}, {6, 5}, {3, 4, 5}}) {
      const ConstructProblem problem(version, size, 5, 3);
      check_against_cpu<float>(problem);
      check_against_cpu<double>(problem);
      check_against_cpu<Half>(problem);
      check_against_cpu<BFloat16>(problem);
    }
  }
}

TEST(shapes) {
  // Not divisible by a block, an axis of 2, rows shared by a block, one row in many boxes, more
  // elements than fit in shared memory at once, taps too long for shared memory (backward).
  struct Shape {
    std::vector<std::int64_t> size;
    std::int64_t rows, elements;
  };
  const std::vector<Shape> shapes = {{{2}, 1, 1},         {{25}, 130, 1},     {{129}, 9, 5},
                                     {{1030}, 2, 3},      {{17, 17}, 7, 9},   {{2, 33}, 3, 2},
                                     {{40, 41}, 2, 3},    {{200, 3}, 2, 3},   {{3, 1100}, 1, 2},
                                     {{9, 9, 9}, 3, 4},   {{2, 3, 2}, 90, 7}, {{11, 12, 13}, 2, 2},
                                     {{80, 60, 2}, 1, 2}, {{4, 4}, 2, 700}};
  for (const Version version : kVersions) {
    for (const Shape& shape : shapes) {
      check_against_cpu<double>(ConstructProblem(version, shape.size, shape.rows, shape.elements));
    }
  }
}

TEST(fewer_blocks_than_work) {
  // A grid has at most 2^31 - 1 blocks; they stride over the rest.
  for (const Version version : kVersions) {
    const ConstructProblem problem(version, {33, 34}, 7, 5);
    check_against_cpu<double>(problem, {3, 2});
    check_against_cpu<float>(problem, {1, 1});
  }
}

TEST(no_subnormal_numbers) {
  ConstructProblem problem(Version::kGauss, {9, 8}, 3, 2);
  for (double& w : problem.weight) w *= 0x1p-127;
  std::size_t small = 0;
  for (const double value : on_host_cuda<double, 2>(problem).kernel) {
    small += value != 0 && std::abs(value) < 0x1p-126;
  }
  CHECK(small > 0);
  for (const double value : on_host_cuda<float, 2>(problem).kernel) {
    CHECK(value == 0 || std::abs(value) >= 0x1p-126);
  }
}

TEST(empty) {
  for (const Version version : kVersions) {
    const ConstructProblem problem(version, {5, 4}, 3, 0);
    const Results got = on_host_cuda<float, 2>(problem);
    for (const double value : got.kernel) CHECK_EQ(value, 0.0);
  }
}

TEST(only_the_gradients_asked_for) {
  const ConstructProblem problem(Version::kGauss, {5, 4}, 3, 2);
  const Results full = on_host_cuda<double, 2>(problem);
  const Results some = on_host_cuda<double, 2>(problem, {}, {}, /*all_gradients=*/false);
  CHECK_SAME_BITS(some.position, full.position);
  for (const double value : some.weight) CHECK(value != value);  // untouched poison
  for (const double value : some.sigma) CHECK(value != value);
}

TEST(rows_of_positions_in_any_order) {
  const ConstructProblem problem(Version::kGauss, {3, 4, 5}, 5, 3);
  const Results expected = on_host_cuda<double, 3>(problem);
  const std::size_t row = problem.weight.size();
  for (const auto& order : std::vector<std::vector<int>>{{1, 2, 0}, {2, 1, 0}, {0, 2, 1}}) {
    ConstructProblem permuted = problem;
    const auto move = [&](const std::vector<double>& from, std::vector<double>& to, bool back) {
      for (std::size_t d = 0; d < order.size(); ++d) {
        const auto other = static_cast<std::size_t>(order[d]);
        std::copy_n(from.begin() + static_cast<std::ptrdiff_t>((back ? other : d) * row), row,
                    to.begin() + static_cast<std::ptrdiff_t>((back ? d : other) * row));
      }
    };
    move(problem.position, permuted.position, false);
    move(problem.sigma, permuted.sigma, false);
    std::copy(order.begin(), order.end(), permuted.args.position_row);
    const Results got = on_host_cuda<double, 3>(permuted);
    CHECK_SAME_BITS(got.kernel, expected.kernel);
    CHECK_SAME_BITS(got.weight, expected.weight);
    CHECK_SAME_BITS(got.support, expected.support);
    std::vector<double> position(got.position.size()), sigma(got.sigma.size());
    move(got.position, position, true);
    move(got.sigma, sigma, true);
    CHECK_SAME_BITS(position, expected.position);
    CHECK_SAME_BITS(sigma, expected.sigma);
  }
}

TEST(bitwise_equal_in_every_order_of_threads) {
  for (const Version version : {Version::kV1, Version::kGauss}) {
    const ConstructProblem problem(version, {18, 19}, 4, 3);
    const Results first = on_host_cuda<float, 2>(problem);
    host_cuda::in_all_schedules([&](const LaunchOptions& options) {
      const Results other = on_host_cuda<float, 2>(problem, options);
      CHECK_SAME_BITS(other.kernel, first.kernel);
      CHECK_SAME_BITS(other.weight, first.weight);
      CHECK_SAME_BITS(other.position, first.position);
      CHECK_SAME_BITS(other.sigma, first.sigma);
      CHECK_SAME_BITS(other.support, first.support);
    });
  }
}

TEST(non_finite_positions) {
  for (const Version version : kVersions) {
    for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      for (const auto& size : std::vector<std::vector<std::int64_t>>{{7}, {6, 5}, {3, 4, 5}}) {
        ConstructProblem problem(version, size, 3, 2);
        problem.position[3] = bad;  // axis 0, row 1, element 1
        const check::Case here(problem.name(), ", position ", bad);
        dispatch_ndim(problem.args.ndim, [&](auto ndim) {
          const Results got = on_host_cuda<double, ndim.value>(problem);
          const std::size_t cells = static_cast<std::size_t>(problem.cells());
          for (std::size_t i = 0; i < got.kernel.size(); ++i) {
            CHECK_EQ(got.kernel[i] != got.kernel[i], i / cells == 1);
            CHECK(got.support[i] == 1 || i / cells != 1);
          }
          for (std::size_t i = 0; i < got.weight.size(); ++i) {
            CHECK_EQ(got.weight[i] != got.weight[i], i == 3);
          }
        });
      }
    }
  }
}

TEST(past_2_to_the_31_cells) {
  // Three rows of 2^30 cells. Only the blocks that hold the element of the last row are run.
  ConstructProblem problem(Version::kV1, {1, 1}, 3, 1);
  problem.args.size[0] = problem.args.size[1] = std::int64_t{1} << 15;
  problem.args.dtype = DType::kFloat16;
  const std::size_t total = std::size_t{3} << 30;
  const std::size_t centre = (std::size_t{2} << 30) + (std::size_t{1} << 29) + (1 << 14);
  const GuardedBuffer<Half> weight(to_storage<Half>({1, 1, 3}), "weight");
  const GuardedBuffer<Half> position(to_storage<Half>(std::vector<double>(6, 0.25)), "position");
  ConstructArgs args = problem.args;
  args.weight = weight.data();
  args.position = position.data();

  auto kernel = GuardedBuffer<Half>::sparse(total, "kernel");
  const cuda::ForwardPlan forward = cuda::make_forward_plan(args);
  CHECK_EQ(forward.items, std::int64_t{3} << 20);
  LaunchOptions options;
  options.first_block = (std::uint64_t{2} << 20) + (std::uint64_t{1} << 19) + 16;
  options.block_count = 1;
  host_cuda::launch(options, cuda::construct_forward<Half, 2>, static_cast<unsigned>(forward.items),
                    cuda::kForwardThreads, forward.shared_values() * sizeof(float), args, forward,
                    static_cast<void*>(kernel.data()));
  CHECK_CLOSE(numeric::load(kernel[centre]), 3 * 0.75 * 0.75, 1e-3, 0);
  CHECK_CLOSE(numeric::load(kernel[centre + 1]), 3 * 0.75 * 0.25, 1e-3, 0);
  CHECK_EQ(numeric::load(kernel[centre + 2]), 0.0f);

  auto& grad_kernel = kernel;
  for (std::size_t x : {centre, centre + 1}) numeric::store(&grad_kernel[x], 1.0f);
  GuardedBuffer<Half> grad_weight(3, "grad_weight");
  ConstructGrads grads;
  grads.weight = grad_weight.data();
  const cuda::BackwardPlan backward = cuda::make_backward_plan(args);
  host_cuda::launch(cuda::construct_backward<Half, 2>, 1, cuda::kBackwardThreads,
                    backward.shared_values() * sizeof(float), args, backward,
                    static_cast<const void*>(grad_kernel.data()), grads);
  CHECK_CLOSE(numeric::load(grad_weight[2]), 0.75, 1e-3, 0);
  CHECK_EQ(numeric::load(grad_weight[1]), 0.0f);
}

TEST(all_instantiated_kernels_were_run) {
  // The list of src/cuda/construct/construct_launch.cuh: every dtype in every number of dimensions.
  for (int ndim = 1; ndim <= kMaxDims; ++ndim) {
    for (int dtype = 0; dtype < kDTypeCount; ++dtype) {
      dispatch_ndim(ndim, [&](auto n) {
        dispatch_dtype(static_cast<DType>(dtype), [&](auto tag) {
          using Storage = typename decltype(tag)::type;
          CHECK(host_cuda::launch_count(cuda::construct_forward<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::construct_backward<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::construct_support_cells<Storage, n.value>) > 0);
        });
      });
    }
  }
}

CHECK_MAIN()
