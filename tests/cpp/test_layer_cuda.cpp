// A whole layer on CUDA, run on the host, against the functions for its parts: bit for bit, since
// the order of the additions is the same.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "cuda/conv/conv_launch.hpp"
#include "cuda/conv/toeplitz_make_plan.hpp"
#include "cuda/cuda_backend.hpp"
#include "cuda/layer/layer_finish.cuh"
#include "cuda/layer/layer_prepare.cuh"
#include "cuda_host/schedules.hpp"
#include "layer_on_host_cuda.hpp"
#include "list_limit.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;

namespace {

/// Of all kernels.
std::uint64_t launches() {
  auto& record = host_cuda::detail::LaunchRecord::instance();
  const std::lock_guard<std::mutex> lock(record.mutex);
  std::uint64_t sum = 0;
  for (const auto& [kernel, count] : record.counts) sum += count;
  return sum;
}

void check_parameters(const LayerResults& got, const LayerResults& expected) {
  CHECK_SAME_BITS(got.weight, expected.weight);
  CHECK_SAME_BITS(got.position, expected.position);
  CHECK_SAME_BITS(got.sigma, expected.sigma);
}
void check_all_but_bias(const LayerResults& got, const LayerResults& expected) {
  CHECK_SAME_BITS(got.output, expected.output);
  CHECK_SAME_BITS(got.input, expected.input);
  check_parameters(got, expected);
}

template <typename Parameter, typename Storage = Parameter>
void check_layer(const LayerProblem& problem) {
  const check::Case here(problem.name(), ", dtypes ", static_cast<int>(DTypeOf<Parameter>::value),
                         " ", static_cast<int>(DTypeOf<Storage>::value));
  const LayerResults got = Device<Parameter, Storage>(problem).run();
  check_all_but_bias(got, problem.by_parts<Parameter, Storage, Guarded>(on_cuda()));
  CHECK(relative_error(got.bias, problem.bias_gradient()) < DTypeOf<Storage>::tolerance);
}

void check_every_dtype(const LayerProblem& problem) {
  check_layer<float>(problem);
  check_layer<double>(problem);
  check_layer<Half>(problem);
  check_layer<BFloat16>(problem);
  check_layer<float, Half>(problem);
  check_layer<float, BFloat16>(problem);
}

/// Cells that do not fit into shared memory, in one box or many.
std::vector<ConvArgs> large_kernels() {
  return {
      conv_args(1, 2, 2, 2, {9, 12}, {150, 110}, {75, 55}),
      conv_args(1, 1, 2, 1, {6, 5, 7}, {24, 25, 23}, {12, 12, 11}),
      conv_args(1, 2, 2, 2, {40}, {13000}, {6490}),
  };
}

}  // namespace

TEST(every_version) {
  for (const Version version : kVersions) {
    for (const ConvArgs& args : typical_conv_args()) {
      check_layer<float>(LayerProblem(args, version));
      if (args.ndim > 1) check_layer<double>(LayerProblem(args, version, 2, args.ndim - 1));
    }
  }
}

TEST(every_dtype) {
  for (const ConvArgs& args : typical_conv_args()) {
    check_every_dtype(LayerProblem(args, Version::kGauss));
  }
}

TEST(tf32_where_it_is_allowed) {
  const Layout last = Layout::kChannelsLast;
  for (ConvArgs args : {conv_args(2, 8, 8, 8, {6, 16}, {3, 5}, {1, 2}),
                        conv_args(2, 9, 9, 9, {5, 24}, {3, 21}, {1, 10}, {}, {}, last),
                        conv_args(3, 8, 8, 8, {40}, {9}, {4})}) {
    args.allow_tf32 = true;
    CHECK(cuda::toeplitz_covers(args) && cuda::tf32_pays(args));
    const LayerProblem rounded(args, Version::kGauss);
    check_layer<float>(rounded);
    args.allow_tf32 = false;
    const LayerResults got = Device<float, float>(rounded).run();
    const LayerResults exact = Device<float, float>(LayerProblem(args, Version::kGauss)).run();
    const auto compare = [](const std::vector<double>& some, const std::vector<double>& all) {
      const double error = relative_error(some, all);
      CHECK(error > 1e-6);
      CHECK(error < 1e-3);  // values have 11 significant bits
    };
    compare(got.output, exact.output);
    compare(got.input, exact.input);
    compare(got.weight, exact.weight);
    compare(got.position, exact.position);
    compare(got.sigma, exact.sigma);
    CHECK(relative_error(got.bias, exact.bias) < 1e-6);  // sums of values that are not rounded
  }
  // Where it takes longer, nothing is rounded.
  ConvArgs narrow = conv_args(2, 8, 8, 8, {6, 8}, {3, 5}, {1, 2});
  const LayerResults exact = Device<float, float>(LayerProblem(narrow, Version::kGauss)).run();
  narrow.allow_tf32 = true;
  const LayerResults same = Device<float, float>(LayerProblem(narrow, Version::kGauss)).run();
  CHECK_SAME_BITS(same.output, exact.output);
  CHECK_SAME_BITS(same.weight, exact.weight);
}

TEST(random_geometries) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    const check::Case here("seed ", seed);
    const ConvArgs args = random_conv_args(seed);
    const Version version = kVersions[seed % std::size(kVersions)];
    const int axes = seed % 3 == 0 ? 1 : args.ndim;
    check_layer<float>(LayerProblem(args, version, seed % 5, axes, seed));
  }
}

TEST(rows_that_do_not_fit_into_shared_memory) {
  for (const ConvArgs& args : large_kernels()) {
    LayerArgs layer = LayerProblem(args, Version::kV1).args<float, float>();
    layer.for_parameters = true;
    const cuda::LayerPlan plan(layer);
    CHECK(!plan.prepare(nullptr, nullptr).cells_in_shared);
    CHECK(!plan.finish({}, nullptr, nullptr).cells_in_shared);
    for (const Version version : {Version::kV1, Version::kGauss}) {
      check_layer<float>(LayerProblem(args, version));
      check_layer<double>(LayerProblem(args, version));
    }
  }
  // The same with a row of each point of a dense axis.
  check_layer<float>(
      LayerProblem(conv_args(1, 2, 2, 2, {9, 12}, {150, 110}, {75, 55}), Version::kMax, 1, 1));
}

TEST(several_rows_a_block) {
  const ConvArgs narrow = conv_args(1, 61, 67, 1, {5}, {3}, {1});
  LayerArgs layer = LayerProblem(narrow, Version::kGauss, 1).args<float, float>();
  layer.for_parameters = true;
  CHECK_EQ(cuda::LayerPlan(layer).prepare(nullptr, nullptr).group, 3);
  CHECK_EQ(cuda::LayerPlan(layer).finish({}, nullptr, nullptr).group, 3);
  check_layer<float>(LayerProblem(narrow, Version::kGauss, 1));
  check_layer<double>(LayerProblem(narrow, Version::kV1, 5));
  const ConvArgs dense = conv_args(1, 61, 67, 1, {3, 4}, {2, 3}, {1, 1});
  check_layer<float>(LayerProblem(dense, Version::kMax, 2, 1));
}

TEST(many_elements) {
  // More than have room in shared memory at a time.
  check_layer<float>(
      LayerProblem(conv_args(1, 2, 2, 2, {9, 8}, {12, 13}, {6, 6}), Version::kGauss, 400));
}

TEST(several_tiles_and_stages) {
  check_layer<float>(LayerProblem(conv_args(1, 1, 1, 1, {60, 200}, {3, 5}, {1, 2}), Version::kV1));
  check_layer<float>(LayerProblem(conv_args(1, 1, 1, 1, {90}, {700}, {350}), Version::kGauss));
  check_layer<float>(
      LayerProblem(conv_args(1, 1, 1, 1, {20, 20}, {80, 90}, {40, 45}), Version::kGauss, 9));
  for (const ConvArgs& args : far_strides()) check_layer<double>(LayerProblem(args, Version::kMax));
}

TEST(lists_in_parts) {
  // The cells are saved in place of the lists, and every pass makes its own: bit for bit the same.
  const auto same = [](auto storage, const LayerProblem& problem, std::size_t bytes) {
    using Storage = decltype(storage);
    const check::Case here(problem.name(), ", bytes ", bytes);
    const LayerResults whole = Device<float, Storage>(problem).run();
    const ListLimit limit(bytes);
    const LayerResults parts = Device<float, Storage>(problem).run();
    check_all_but_bias(parts, whole);
    CHECK_SAME_BITS(parts.bias, whole.bias);
  };
  for (const ConvArgs& args : typical_conv_args()) {
    same(float{}, LayerProblem(args, Version::kGauss), 0);
    same(BFloat16{}, LayerProblem(args, Version::kMax, 2, 1), 0);
  }
  for (const ConvArgs& args : large_kernels()) same(float{}, LayerProblem(args, Version::kV1), 0);
  for (unsigned seed = 0; seed < 30; ++seed) {
    same(float{}, LayerProblem(random_conv_args(seed), Version::kGauss, 3), 20000);
  }
}

TEST(lists_in_parts_take_less_memory) {
  const LayerProblem problem(conv_args(1, 64, 64, 1, {30}, {25}, {12}), Version::kGauss);
  LayerArgs args = problem.args<float, float>();
  args.for_input = args.for_parameters = true;
  const auto bytes = [&](LayerPass pass) { return cuda::layer_workspace(args, pass, on_cuda()); };
  const std::size_t cells = 64 * 64 * 25;
  CHECK(cuda::layer_saved(args, on_cuda()) > 24 * cells);  // two lists
  CHECK(bytes(LayerPass::kForward) > 12 * cells);
  const std::size_t most = 100000;
  const ListLimit limit(most);
  CHECK(cuda::layer_saved(args, on_cuda()) <= 5 * cells + 256);  // values and support
  CHECK(bytes(LayerPass::kForward) <= most);
  const std::int64_t splits = cuda::make_conv_plan(args.conv, ConvPass::kBackwardKernel).splits;
  const std::size_t sums = static_cast<std::size_t>(splits) * (cells + 64) * sizeof(float);
  CHECK(bytes(LayerPass::kBackward) <= most + sums + 512);
}

TEST(gradients_asked_for_where_lists_are_in_parts) {
  const LayerProblem problem(conv_args(1, 10, 12, 2, {30}, {25}, {12}), Version::kGauss);
  const LayerResults all = Device<float, float>(problem).run();
  const ListLimit limit(0);
  for (unsigned bits = 0; bits < 8; ++bits) {
    const bool input = bits % 2 != 0, bias = bits / 2 % 2 != 0, parameters = bits / 4 != 0;
    const LayerResults got =
        Device<float, float>(problem).run({input, bias, parameters, parameters, parameters});
    CHECK_SAME_BITS(got.output, all.output);
    if (input) CHECK_SAME_BITS(got.input, all.input);
    if (bias) CHECK_SAME_BITS(got.bias, all.bias);
    if (parameters) check_parameters(got, all);
  }
}

TEST(nothing) {
  for (const ConvArgs& args : empty_conv_args()) {
    check_layer<double>(LayerProblem(args, Version::kGauss));
    check_layer<float>(LayerProblem(args, Version::kV0, 0));
  }
  for (const ConvArgs& args : typical_conv_args()) {
    check_layer<float>(LayerProblem(args, Version::kV1, 0));
  }
}

TEST(rows_of_positions_in_any_order) {
  LayerProblem problem(conv_args(1, 2, 2, 2, {5, 6, 7}, {3, 4, 5}, {1, 2, 2}), Version::kGauss);
  const int order[3] = {2, 0, 1};
  std::copy_n(order, 3, problem.construct.args.position_row);
  check_layer<double>(problem);
}

TEST(non_finite_positions) {
  for (const Version version : kVersions) {
    for (const double bad : {HUGE_VAL, std::nan("")}) {
      for (const int axes : {1, 2}) {
        LayerProblem problem(conv_args(1, 2, 2, 2, {7, 8}, {4, 5}, {2, 2}), version, 2, axes);
        problem.construct.position[1] = bad;
        const check::Case here(problem.name(), ", position ", bad);
        const LayerResults got = Device<float, float>(problem).run();
        const LayerResults expected = problem.by_parts<float, float, Guarded>(on_cuda());
        CHECK(std::isnan(got.weight[1]));
        CHECK_ALL_CLOSE(got.output, expected.output, 0, 0);
        CHECK_ALL_CLOSE(got.input, expected.input, 0, 0);
        CHECK_ALL_CLOSE(got.weight, expected.weight, 0, 0);
        CHECK_ALL_CLOSE(got.position, expected.position, 0, 0);
        CHECK_ALL_CLOSE(got.sigma, expected.sigma, 0, 0);
      }
    }
  }
}

TEST(launches_and_memory_of_a_training_step) {
  for (const ConvArgs& args : typical_conv_args()) {
    const LayerProblem problem(args, Version::kGauss);
    const check::Case here(problem.name());
    Device<float, float> device(problem);
    device.args.for_input = device.args.for_parameters = true;
    const Execution where = on_cuda();
    Workspace<Guarded> saved(cuda::layer_saved(device.args, where)),
        forward(cuda::layer_workspace(device.args, LayerPass::kForward, where)),
        backward(cuda::layer_workspace(device.args, LayerPass::kBackward, where));
    const std::uint64_t before = launches();
    cuda::layer_forward(device.args, device.input.data(), device.bias.data(), device.output.data(),
                        saved.data(), forward.data(), where);
    CHECK_EQ(launches() - before, 2u);
    const auto backward_launches = [&](const LayerAsked& asked) {
      const std::uint64_t start = launches();
      cuda::layer_backward(device.args, device.grad_output.data(), device.input.data(),
                           device.grads(asked), saved.data(), backward.data(), where);
      return launches() - start;
    };
    CHECK_EQ(backward_launches({}), 3u);
    CHECK_EQ(backward_launches({true, false, false, false, false}), 1u);
    CHECK_EQ(backward_launches({false, true, false, false, false}), 2u);
    CHECK_EQ(backward_launches({false, false, false, true, false}), 2u);
    CHECK_EQ(backward_launches({false, false, false, false, false}), 0u);
  }
}

TEST(only_the_gradients_asked_for) {
  const LayerProblem problem(conv_args(2, 3, 3, 3, {15, 16}, {7, 5}, {3, 2}), Version::kGauss);
  const LayerResults all = Device<float, float>(problem).run();
  const auto compare = [](bool asked, const std::vector<double>& got,
                          const std::vector<double>& expected) {
    if (asked) CHECK_SAME_BITS(got, expected);
    for (const double value : got) CHECK(asked || value != value);  // untouched poison
  };
  for (unsigned bits = 0; bits < 32; ++bits) {
    const auto has = [&](unsigned bit) { return (bits >> bit & 1u) != 0; };
    const LayerAsked asked{has(0), has(1), has(2), has(3), has(4)};
    const LayerResults some = Device<float, float>(problem).run(asked);
    CHECK_SAME_BITS(some.output, all.output);
    compare(asked.input, some.input, all.input);
    compare(asked.bias, some.bias, all.bias);
    compare(asked.weight, some.weight, all.weight);
    compare(asked.position, some.position, all.position);
    compare(asked.sigma, some.sigma, all.sigma);
  }
  LayerArgs args = problem.args<float, float>();
  CHECK_EQ(cuda::layer_saved(args, on_cuda()), 0u);
}

TEST(without_a_bias) {
  const LayerProblem problem(conv_args(2, 3, 3, 3, {15, 16}, {7, 5}, {3, 2}), Version::kV1);
  Device<float, float> device(problem);
  const Execution where = on_cuda();
  Workspace<Guarded> forward(cuda::layer_workspace(device.args, LayerPass::kForward, where));
  cuda::layer_forward(device.args, device.input.data(), nullptr, device.output.data(), nullptr,
                      forward.data(), where);
  LayerProblem zero = problem;
  for (double& b : zero.conv.bias) b = 0;
  CHECK_ALL_CLOSE(device.results().output, (Device<float, float>(zero).run().output), 0, 0);
}

TEST(support_is_that_of_construct) {
  for (const Version version : kVersions) {
    for (const double bad : {0.0, HUGE_VAL}) {
      LayerProblem problem(conv_args(1, 3, 3, 3, {9, 9, 9}, {6, 7, 5}, {2, 2, 2}), version, 2);
      if (bad != 0) problem.construct.position[1] = bad;
      Device<float, float> device(problem);
      device.args.for_parameters = true;
      GuardedBuffer<unsigned char> saved(cuda::layer_saved(device.args, on_cuda()), "saved"),
          forward(cuda::layer_workspace(device.args, LayerPass::kForward, on_cuda()), "workspace");
      cuda::layer_forward(device.args, device.input.data(), nullptr, device.output.data(),
                          saved.data(), forward.data(), on_cuda());
      const cuda::LayerPrepare job = cuda::LayerPlan(device.args).prepare(saved.data(), nullptr);
      GuardedBuffer<std::uint8_t> support(problem.conv.kernel.size(), "support");
      construct_support(device.args.construct, support.data(), on_cuda());
      CHECK_SAME_BITS(std::vector<std::uint8_t>(job.support, job.support + support.size()),
                      support.to_vector());
    }
  }
}

TEST(fewer_blocks_than_work) {
  // A grid has at most 2^31 - 1 blocks; they stride over the rest.
  std::vector<ConvArgs> cases = typical_conv_args();
  cases.push_back(large_kernels()[0]);
  for (const ConvArgs& args : cases) {
    const LayerProblem problem(args, Version::kGauss, 9);  // for all warps
    const check::Case here(problem.name());
    const LayerResults expected = Device<float, float>(problem).run();
    Device<float, float> device(problem);
    device.args.for_input = device.args.for_parameters = true;
    const Execution where = on_cuda();
    const cuda::LayerPlan plan(device.args);
    GuardedBuffer<unsigned char> saved(plan.saved(), "saved"), whole(plan.saved(), "saved"),
        forward(plan.workspace(LayerPass::kForward), "workspace"),
        backward(plan.workspace(LayerPass::kBackward), "workspace");
    cuda::layer_forward(device.args, device.input.data(), device.bias.data(), device.output.data(),
                        whole.data(), forward.data(), where);
    cuda::layer_backward(device.args, device.grad_output.data(), device.input.data(),
                         device.grads({}), whole.data(), backward.data(), where);
    const cuda::LayerPrepare prepare = plan.prepare(saved.data(), forward.data());
    dispatch_ndim(args.ndim, [&](auto ndim) {
      host_cuda::launch(cuda::layer_prepare<float, ndim.value>, 2, cuda::kForwardThreads,
                        prepare.shared, prepare);
      CHECK_SAME_BITS(saved.to_vector(), whole.to_vector());
      // Their sums replace those of the first split where they do not fit into shared memory.
      const auto partial =
          args.ndim == 1 ? cuda::launch_conv_partial<true> : cuda::launch_conv_partial<false>;
      partial(plan.kernel(), device.args.conv.dtype, plan.kernel_lists(saved.data()),
              device.grad_output.data(), device.input.data(), backward.data(),
              plan.bias_sums(backward.data()), where);
      const cuda::LayerFinish finish = plan.finish(device.grads({}), saved.data(), backward.data());
      host_cuda::launch(cuda::layer_finish<float, ndim.value>, 2, cuda::kBackwardThreads,
                        finish.shared, finish, finish.row_blocks(), finish.blocks());
    });
    const LayerResults got = device.results();
    CHECK_SAME_BITS(got.bias, expected.bias);
    check_parameters(got, expected);
  }
}

TEST(bitwise_equal_in_every_order_of_threads) {
  const char* const former = std::getenv("DCLS_HOST_CUDA_ORDER");
  const std::string order = former == nullptr ? "forward" : former;
  std::vector<ConvArgs> cases = typical_conv_args();
  cases.push_back(large_kernels()[0]);
  for (const ConvArgs& args : cases) {
    const LayerProblem problem(args, Version::kGauss, 3, 1);
    const LayerResults first = Device<float, float>(problem).run();
    for (const host_cuda::Schedule& schedule : host_cuda::all_schedules(2)) {
      const check::Case here(problem.name(), ", ", to_string(schedule));
      setenv("DCLS_HOST_CUDA_ORDER", to_string(schedule).c_str(), 1);
      const LayerResults other = Device<float, float>(problem).run();
      CHECK_SAME_BITS(other.bias, first.bias);
      check_all_but_bias(other, first);
    }
    setenv("DCLS_HOST_CUDA_ORDER", order.c_str(), 1);
  }
}

TEST(all_instantiated_kernels_were_run) {
  // The list of src/cuda/layer/layer_launch.cuh: every dtype in every number of dimensions.
  for (int ndim = 1; ndim <= kMaxDims; ++ndim) {
    for (int dtype = 0; dtype < 4; ++dtype) {
      dispatch_ndim(ndim, [&](auto n) {
        dispatch_dtype(static_cast<DType>(dtype), [&](auto tag) {
          using Storage = typename decltype(tag)::type;
          CHECK(host_cuda::launch_count(cuda::layer_prepare<Storage, n.value>) > 0);
          CHECK(host_cuda::launch_count(cuda::layer_finish<Storage, n.value>) > 0);
        });
      });
    }
  }
}

CHECK_MAIN()
