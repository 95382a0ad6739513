// The CUDA kernels of the im2col operator, run on the host, against the CPU back end.
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "cuda/im2col/im2col_kernels.cuh"
#include "cuda_host/schedules.hpp"
#include "im2col_problem.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

namespace {

/// Blocks of a launch: one per item, as the library launches, or fewer.
unsigned grid(std::int64_t items, unsigned most) {
  return most > 0 ? most : static_cast<unsigned>(items);
}

template <typename Storage, int D>
Im2colResults on_host_cuda(const Im2colProblem& problem, const LaunchOptions& options = {},
                           unsigned most_blocks = 0) {
  using T = Compute<Storage>;
  const GuardedBuffer<Storage> input(to_storage<Storage>(problem.input), "input");
  const GuardedBuffer<Storage> grad(to_storage<Storage>(problem.grad_columns), "grad_columns");
  const GuardedBuffer<T> position(to_storage<T>(problem.position), "position");
  const GuardedBuffer<T> sigma(to_storage<T>(problem.sigma), "sigma");
  GuardedBuffer<Storage> columns(grad.size(), "columns");
  GuardedBuffer<Storage> grad_input(input.size(), "grad_input");
  GuardedBuffer<T> sums(std::vector<T>(problem.sum_values(), T(0)), "sums");
  GuardedBuffer<T> grad_position(position.size(), "grad_position");
  GuardedBuffer<T> grad_sigma(sigma.size(), "grad_sigma");
  Im2colArgs args = problem.args;
  args.dtype = DTypeOf<Storage>::value;
  args.input = input.data();
  args.position = position.data();
  args.sigma = sigma.size() > 0 ? sigma.data() : nullptr;
  const TapLayout layout = tap_table::longest_layout(args);
  GuardedBuffer<T> workspace(
      static_cast<std::size_t>(tap_table::bytes<T>(layout, D)) / sizeof(T) + 1, "workspace");
  void* const table = workspace.data();

  const std::int64_t element_blocks = cuda::blocks_of(layout.elements);
  host_cuda::launch(options, cuda::im2col_taps<T, D>, grid(element_blocks, most_blocks),
                    cuda::kIm2colThreads, 0, args, layout, table);
  workspace.check();
  const cuda::PlanePlan forward = cuda::make_plane_plan(args, args.output_size);
  host_cuda::launch(options, cuda::im2col_forward<Storage, D>, grid(forward.items, most_blocks),
                    cuda::kIm2colThreads, 0, args, layout, forward, table,
                    static_cast<void*>(columns.data()));
  columns.check();
  Im2colGrads grads;
  grads.input = grad_input.data();
  grads.batch_stride = args.batch_stride;
  grads.channel_stride = args.channel_stride;
  grads.sums = sums.data();
  grads.parts = problem.parts;
  grads.sigma = sigma.size() > 0;
  const cuda::PlanePlan backward = cuda::make_plane_plan(args, args.input_size);
  const void* const source = grad.data();
  host_cuda::launch(options, cuda::im2col_backward_input<Storage, D>,
                    grid(backward.items, most_blocks), cuda::kIm2colThreads, 0, args, layout,
                    backward, table, source, grads);
  grad_input.check();
  host_cuda::launch(options, cuda::im2col_backward_sums<Storage, D>,
                    grid(grads.parts * layout.elements, most_blocks), cuda::kIm2colThreads,
                    cuda::kSumWarps * tap_table::sums_of(D) * sizeof(T), args, layout, table,
                    source, grads);
  sums.check();
  host_cuda::launch(options, cuda::im2col_finish<T, D>, grid(element_blocks, most_blocks),
                    cuda::kIm2colThreads, 0, args, layout, table,
                    static_cast<const void*>(sums.data()), grads.parts,
                    static_cast<void*>(grad_position.data()),
                    sigma.size() > 0 ? static_cast<void*>(grad_sigma.data()) : nullptr);
  grad_position.check();
  grad_sigma.check();
  return {to_double(columns), to_double(grad_input), to_double(grad_position),
          to_double(grad_sigma)};
}

template <typename Storage>
void check_against_cpu(const Im2colProblem& problem, unsigned most_blocks = 0) {
  dispatch_ndim(problem.args.ndim, [&](auto ndim) {
    check_results<Storage>(problem, on_host_cuda<Storage, ndim.value>(problem, {}, most_blocks));
  });
}

}  // namespace

TEST(every_kernel_version_and_shape) {
  for (const Version version : kVersions) {
    for (const Im2colShape& shape : kIm2colShapes) {
      check_against_cpu<double>(Im2colProblem(version, shape));
    }
  }
}

TEST(every_dtype) {
  const std::vector<Im2colShape> shapes = {{{9}, {5}, {1}, {2}},
                                           {{6, 7}, {3, 4}, {1, 1}, {1, 2}},
                                           {{4, 5, 6}, {3, 2, 5}, {1, 1, 1}, {1, 1, 2}}};
  for (const Version version : {Version::kV1, Version::kGauss}) {
    for (const Im2colShape& shape : shapes) {
      const Im2colProblem problem(version, shape);
      check_against_cpu<float>(problem);
      check_against_cpu<Half>(problem);
      check_against_cpu<BFloat16>(problem);
    }
  }
}

TEST(fewer_blocks_than_work) {
  // A grid has at most 2^31 - 1 blocks; they stride over the rest.
  const Im2colShape shape{{20, 21}, {5, 4}, {1, 1}, {2, 2}, 3, 2, 2};
  check_against_cpu<double>(Im2colProblem(Version::kGauss, shape), 3);
  check_against_cpu<double>(Im2colProblem(Version::kV0, shape), 1);
}

TEST(many_elements) {
  // More than a block of the kernels that have an element a thread.
  check_against_cpu<double>(Im2colProblem(Version::kMax, {{5}, {3}, {1}, {1}, 1, 3, 100}));
}

TEST(bitwise_equal_in_every_order_of_threads) {
  const Im2colProblem problem(Version::kGauss, {{18, 19}, {5, 5}, {1, 1}, {2, 2}, 3, 1, 2});
  const Im2colResults first = on_host_cuda<float, 2>(problem);
  host_cuda::in_all_schedules([&](const LaunchOptions& options) {
    const Im2colResults other = on_host_cuda<float, 2>(problem, options, 2);
    CHECK_SAME_BITS(other.columns, first.columns);
    CHECK_SAME_BITS(other.input, first.input);
    CHECK_SAME_BITS(other.position, first.position);
    CHECK_SAME_BITS(other.sigma, first.sigma);
  });
}

TEST(non_finite_positions) {
  for (const Version version : kVersions) {
    for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      Im2colProblem problem(version, {{6, 7}, {5, 4}, {1, 1}, {2, 2}, 2, 2, 2});
      problem.position[3] = bad;  // axis 0, channel 1, element 1
      const check::Case here(problem.name(), ", position ", bad);
      const Im2colResults got = on_host_cuda<double, 2>(problem);
      const std::size_t outputs = got.columns.size() / 8, points = got.input.size() / 4;
      for (std::size_t i = 0; i < got.columns.size(); ++i) {
        CHECK_EQ(got.columns[i] != got.columns[i], i / outputs % 4 == 3);
      }
      for (std::size_t i = 0; i < got.input.size(); ++i) {
        CHECK_EQ(got.input[i] != got.input[i], i / points % 2 == 1);
      }
      for (std::size_t i = 0; i < got.position.size(); ++i) {
        CHECK_EQ(got.position[i] != got.position[i], i % 4 == 3);
      }
      const Im2colResults on_cpu = problem.on_cpu<double>();
      for (std::size_t i = 0; i < on_cpu.columns.size(); ++i) {
        CHECK_EQ(on_cpu.columns[i] != on_cpu.columns[i], i / outputs % 4 == 3);
      }
    }
  }
}

TEST(past_2_to_the_31_values) {
  // Columns of 3 * 2^30 values. Only the block that has the last outputs is run.
  Im2colProblem problem(Version::kV1, {{4}, {3}, {1}, {1}, 1, 1, 3});
  Im2colArgs args = problem.args;
  args.dtype = DType::kFloat16;
  args.input_size[0] = args.output_size[0] = std::int64_t{1} << 30;
  const std::size_t points = std::size_t{1} << 30;
  auto input = GuardedBuffer<Half>::sparse(points, "input");
  auto columns = GuardedBuffer<Half>::sparse(3 * points, "columns");
  numeric::store(&input[points - 2], 8.0f);
  const GuardedBuffer<float> position(to_storage<float>({0.25, 0, -0.5}), "position");
  args.input = input.data();
  args.position = position.data();
  const TapLayout layout = tap_table::longest_layout(args);
  GuardedBuffer<float> workspace(
      static_cast<std::size_t>(tap_table::bytes<float>(layout, 1)) / sizeof(float), "workspace");
  void* const table = workspace.data();
  host_cuda::launch(cuda::im2col_taps<float, 1>, 1, cuda::kIm2colThreads, 0, args, layout, table);
  const cuda::PlanePlan plan = cuda::make_plane_plan(args, args.output_size);
  LaunchOptions options;
  options.first_block = static_cast<std::uint64_t>(plan.items) - 1;
  options.block_count = 1;
  host_cuda::launch(options, cuda::im2col_forward<Half, 1>, static_cast<unsigned>(plan.items),
                    cuda::kIm2colThreads, 0, args, layout, plan, table,
                    static_cast<void*>(columns.data()));
  CHECK_CLOSE(numeric::load(columns[points - 2]), 8 * 0.75, 1e-3, 0);
  CHECK_CLOSE(numeric::load(columns[points - 3]), 8 * 0.25, 1e-3, 0);
  CHECK_CLOSE(numeric::load(columns[2 * points - 2]), 8, 1e-3, 0);
  CHECK_CLOSE(numeric::load(columns[3 * points - 1]), 8 * 0.5, 1e-3, 0);
  CHECK_EQ(numeric::load(columns[2 * points - 1]), 0.0f);
}

TEST(all_instantiated_kernels_were_run) {
  // The list of src/cuda/im2col/im2col_launch.cuh: every dtype in every number of dimensions.
  for (int ndim = 1; ndim <= kMaxDims; ++ndim) {
    for (int dtype = 0; dtype < kDTypeCount; ++dtype) {
      dispatch_ndim(ndim, [&](auto n) {
        dispatch_dtype(static_cast<DType>(dtype), [&](auto tag) {
          using Storage = typename decltype(tag)::type;
          using T = Compute<Storage>;
          CHECK(host_cuda::launch_count(cuda::im2col_taps<T, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::im2col_forward<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::im2col_backward_input<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::im2col_backward_sums<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::im2col_finish<T, n.value>) > 0);
        });
      });
    }
  }
}

CHECK_MAIN()
