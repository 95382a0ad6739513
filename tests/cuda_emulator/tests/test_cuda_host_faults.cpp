// Self-tests of the CUDA-on-host harness: that it sees each fault it claims to see, and goes on
// after it. What ends a process is run in a process of its own, see run_fatal().
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "cuda_host.hpp"
#include "self_test.hpp"
#include "self_test_kernels.cuh"

using namespace dcls::host_cuda;
using namespace dcls::host_cuda::self_test;

namespace {

const char* program = "";

/// Runs this program with an argument. @returns its exit code, and what it wrote to `output`.
int run_again(const char* argument, std::string& output) {
  FILE* const pipe = popen((std::string(program) + " '" + argument + "' 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot run the test again");
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) output += buffer;
  const int status = pclose(pipe);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

TEST(launches_that_cuda_refuses) {
  const auto run = [](dim3 grid, dim3 block, std::size_t shared, LaunchOptions options = {}) {
    launch(options, barrier_for_some, grid, block, shared, 0u);
  };
  CHECK_THROWS(LaunchError, "grid.x is 0, takes 1 to 2147483647", run(0, 1, 0));
  CHECK_THROWS(LaunchError, "grid.y is 65536", run(dim3(1, 65536), 1, 0));
  CHECK_THROWS(LaunchError, "grid.z is 65536", run(dim3(1, 1, 65536), 1, 0));
  CHECK_THROWS(LaunchError, "block.x is 0", run(1, 0, 0));
  CHECK_THROWS(LaunchError, "block.x is 1025", run(1, 1025, 0));
  CHECK_THROWS(LaunchError, "block.z is 65", run(1, dim3(1, 1, 65), 0));
  CHECK_THROWS(LaunchError, "threads of a block is 1056, takes 1 to 1024", run(1, dim3(33, 32), 0));
  CHECK_THROWS(LaunchError, "shared_bytes is 49153, takes up to 49152", run(1, 1, 49153));
  run(1, 1, 49152);
  LaunchOptions options;
  options.max_block_threads = 256;
  CHECK_THROWS(LaunchError, "is 257, takes 1 to 256", run(1, 257, 0, options));
  options.shared_limit = 227 * 1024;
  run(1, 256, 227 * 1024, options);
  CHECK_THROWS(LaunchError, "shared_bytes is 232449", run(1, 1, 227 * 1024 + 1, options));
  options.shared_limit = 228 * 1024;
  CHECK_THROWS(LaunchError, "shared_limit is 233472", run(1, 1, 0, options));
}

#if !defined(DCLS_HOST_CUDA_TSAN)
TEST(missing_barriers_show_in_some_order) {
  const std::vector<float> values = ramp<float>(64);
  const std::vector<float> reversed(values.rbegin(), values.rend());
  std::vector<float> rotated(64);
  for (std::size_t i = 0; i < 64; ++i) rotated[i] = values[(i + 2) % 64];
  int wrong_reversals = 0, wrong_rotations = 0, schedules = 0;
  in_all_schedules([&](const LaunchOptions& options) {
    ++schedules;
    GuardedBuffer<float> data(values, "data");
    launch(options, reverse_without_barrier<float>, 1, 64, 64 * sizeof(float), data.data());
    wrong_reversals += std::memcmp(data.data(), reversed.data(), data.bytes()) != 0;
    GuardedBuffer<float> rotating(values, "rotating");
    launch(options, rotate_without_second_barrier<float>, 1, 64, 0, rotating.data(), 2);
    wrong_rotations += std::memcmp(rotating.data(), rotated.data(), rotating.bytes()) != 0;
  });
  CHECK_EQ(wrong_reversals, schedules);
  CHECK(wrong_rotations > 0);
}

#else
TEST(races_are_reported) {
  const std::pair<const char*, const char*> races[] = {{"race in block", "reverse_without_barrier"},
                                                       {"race in warp", "swap_neighbours"},
                                                       {"race of blocks", "read_of_other_block"}};
  for (const auto& [argument, kernel] : races) {
    const check::Case here(argument);
    std::string output;
    CHECK_EQ(run_again(argument, output), 66);  // the exit code of a process with reports
    CHECK(output.find("data race") != std::string::npos);
    CHECK(output.find(kernel) != std::string::npos);
  }
}

#endif

TEST(divergence_is_told) {
  in_all_schedules([&](const LaunchOptions& options) {
    GuardedBuffer<int> ints(64, "ints");
    GuardedBuffer<unsigned> words(64, "words");
    CHECK_THROWS(KernelError, "20 of 64 threads, from (0, 0, 0) on, in __syncthreads at ",
                 launch(options, barrier_for_some, 1, 64, 0, 20u));
    CHECK_THROWS(KernelError, "44 of 64 threads, from (20, 0, 0) on, exited",
                 launch(options, barrier_for_some, 1, 64, 0, 20u));
    CHECK_THROWS(KernelError, "divergent barrier", launch(options, two_barriers, 1, 64, 0));
    CHECK_THROWS(KernelError, "31 of 32 threads, from (0, 0, 0) on, in __shfl_xor_sync(mask 0xf",
                 launch(options, barrier_against_shuffle, 1, 32, 0, ints.data()));
    CHECK_THROWS(KernelError, "1 of 32 threads, from (5, 0, 0) on, in __ballot_sync",
                 launch(options, shuffle_against_ballot, 1, 32, 0, words.data()));
    CHECK_THROWS(KernelError, "which has exited or is not in the mask",
                 launch(options, shuffle_of_other_masks, 1, 32, 0, ints.data()));
    launch(options, barrier_for_some, 1, 64, 0, 64u);  // and the harness goes on
    launch(options, barrier_for_some, 1, 64, 0, 0u);
  });
}

TEST(undefined_shuffles_are_told) {
  GuardedBuffer<int> output(40, "output");
  launch(shuffle, 1, 40, 0, output.data(), 0xffu, 7, 32);
  CHECK_EQ(output[0], 7);
  CHECK_THROWS(KernelError, "thread (0, 0, 0): shuffles from lane 9",
               launch(shuffle, 1, 40, 0, output.data(), 0xffu, 9, 32));
  CHECK_THROWS(KernelError, "shuffles from lane 9, which has exited or is not in the mask",
               launch(shuffle, 1, 40, 0, output.data(), 0xffffffffu, 9, 32));
  CHECK_THROWS(KernelError, "its own lane 0 is not in the mask",
               launch(shuffle, 1, 8, 0, output.data(), 0xfeu, 1, 32));
  CHECK_THROWS(KernelError, "shuffle width 12, must be a power of two",
               launch(shuffle, 1, 40, 0, output.data(), 0xffu, 1, 12));
  CHECK_THROWS(KernelError, "shuffle width 64",
               launch(shuffle, 1, 8, 0, output.data(), 0xffu, 1, 64));
  CHECK_THROWS(KernelError, "shuffle width 0",
               launch(shuffle, 1, 8, 0, output.data(), 0xffu, 1, 0));
  launch(shuffle_down_by, 1, 32, 0, output.data(), 16u);
  CHECK_EQ(output[15], 31);
  CHECK_EQ(output[16], 16);
  CHECK_THROWS(KernelError, "thread (32, 0, 0): shuffles from lane 16",
               launch(shuffle_down_by, 1, 40, 0, output.data(), 16u));
  CHECK_THROWS(KernelError, "shuffle delta or lane mask 32",
               launch(shuffle_down_by, 1, 32, 0, output.data(), 32u));
}

TEST(exceptions_and_failures_leave_the_launch) {
  for (const unsigned threads : {1u, 70u}) {
    CHECK_THROWS(KernelError, "block (2, 0, 0): thread (0, 0, 0): threw: no luck",
                 launch(
                     +[] {
                       if (blockIdx.x == 2 && threadIdx.x == 0) throw std::runtime_error("no luck");
                       if (blockIdx.x == 2) __syncthreads();
                     },
                     3, threads, 0));
    CHECK_THROWS(KernelError, "is no std::exception", launch(+[] { throw 1; }, 1, threads, 0));
    // fail() may pass a noexcept function, which an exception may not.
    CHECK_THROWS(
        KernelError, ", 0, 0): index 9 of 4",
        launch(+[] { []() noexcept { dcls::host_cuda::fail("index 9 of 4"); }(); }, 2, threads, 0));
  }
  CHECK_THROWS(KernelError, "a kernel cannot launch a kernel",
               launch(+[] { launch(barrier_for_some, 1, 1, 0, 1u); }, 1, 1, 0));
}

TEST(accesses_outside_of_buffers) {
  GuardedBuffer<float> output(10, "output");
  const GuardedBuffer<float> input(ramp<float>(7), "input");
  in_all_schedules([&](const LaunchOptions& options) {
    launch(options, write_at, 3, 2, 0, output.data(), 9ll);
    CHECK_EQ(output[9], 1.0f);
    CHECK_THROWS(KernelError, "invalid access, 0 bytes behind the end of 'output' (40 bytes)",
                 launch(options, write_at, 1, 1, 0, output.data(), 10ll));
    CHECK_THROWS(KernelError, "): invalid access, 80 bytes behind the end of 'output'",
                 launch(options, write_at, 2, 64, 0, output.data(), 30ll));
    CHECK_THROWS(KernelError, "): invalid access, 1000000 bytes behind the end of 'output'",
                 launch(options, write_at, 1, 1, 0, output.data(), 250010ll));
    CHECK_THROWS(KernelError, "0 bytes behind the end of 'input' (28 bytes)",
                 launch(options, add_at, 1, 1, 0, output.data(), input.data(), 7ll));
    CHECK_THROWS(KernelError, "invalid access, address ",
                 launch(options, write_at, 1, 1, 0, reinterpret_cast<float*>(64), 0ll));
  });
  GuardedBuffer<float> empty(0, "empty");
  CHECK_THROWS(KernelError, "0 bytes behind the end of 'empty' (0 bytes)",
               launch(write_at, 1, 1, 0, empty.data(), 0ll));
  CHECK_THROWS(KernelError, "4 bytes before the begin of 'empty' (0 bytes)",
               launch(write_at, 1, 1, 0, empty.data(), -1ll));
}

TEST(guard_at_the_begin) {
  GuardedBuffer<float> output(std::vector<float>(10, 2.0f), "output", Guard::kBegin);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(output.data()) % 256, 0u);
  launch(write_at, 1, 1, 0, output.data(), 0ll);
  CHECK_EQ(output[0], 1.0f);
  CHECK_THROWS(KernelError, "4 bytes before the begin of 'output'",
               launch(write_at, 1, 1, 0, output.data(), -1ll));
  // On the other side there is a canary: read, it is NaN; written, it is found.
  launch(add_at, 1, 1, 0, output.data(), static_cast<const float*>(output.data()), 10ll);
  CHECK(std::isnan(output[0]));
  output.check();
  launch(write_at, 1, 1, 0, output.data(), 12ll);
  CHECK_THROWS(GuardError, "something wrote 8 bytes behind the end of 'output'", output.check());
}

TEST(canary_before_the_begin) {
  GuardedBuffer<double> output(3, "output");
  for (const double value : output) CHECK(std::isnan(value));
  launch(write_at, 1, 1, 0, reinterpret_cast<float*>(output.data()), -1ll);
  CHECK_THROWS(GuardError, "something wrote 4 bytes before the begin of 'output' (24 bytes)",
               output.check());
  CHECK_THROWS(std::out_of_range, "index 3 of 'output', which has 3 elements", output[3] = 0);
}

TEST(buffers_past_two_to_the_31) {
  constexpr long long kSize = 3ll << 30;  // elements: 12 GiB of addresses, a few pages of memory
  auto output = GuardedBuffer<float>::sparse(kSize, "output");
  for (const long long index : {0ll, 1ll << 31, kSize - 1}) {
    launch(write_at, 1, 1, 0, output.data(), index);
    CHECK_EQ(output[static_cast<std::size_t>(index)], 1.0f);
  }
  CHECK_EQ(output[1u << 30], 0.0f);
  CHECK_THROWS(KernelError, "0 bytes behind the end of 'output' (12884901888 bytes)",
               launch(write_at, 1, 1, 0, output.data(), kSize));
  CHECK_THROWS(KernelError, "invalid access",
               launch(write_at, 1, 1, 0, output.data(), -(1ll << 31)));
}

TEST(dynamic_shared_memory_ends_where_the_launch_says) {
  launch(write_shared_at, 2, 5, 20, 4);
  if (kAsan) {  // ends the process with a report of its own
    std::string output;
    CHECK(run_again("shared overrun", output) != 0);
    CHECK(output.find("use-after-poison") != std::string::npos);
    return;
  }
  for (const unsigned threads : {1u, 40u}) {
    CHECK_THROWS(KernelError, "wrote 0 bytes behind the end of 'dynamic shared memory' (20 bytes)",
                 launch(write_shared_at, 2, threads, 20, 5));
    CHECK_THROWS(KernelError, "invalid access, 12 bytes behind the end of 'dynamic shared memory'",
                 launch(write_shared_at, 2, threads, 20, 8));
    CHECK_THROWS(KernelError, "before the begin of 'dynamic shared memory' (20 bytes)",
                 launch(write_shared_at, 2, threads, 20, -1));
    CHECK_THROWS(KernelError, "0 bytes behind the end of 'dynamic shared memory' (0 bytes)",
                 launch(write_shared_at, 2, threads, 0, 0));
  }
}

TEST(stack_overflow_is_told) {
  char output = 0;
  for (const unsigned threads : {1u, 40u}) {
    CHECK_THROWS(KernelError, "stack of a CUDA thread",
                 launch(overflow_stack, 1, threads, 0, &output));
  }
}

TEST(stray_access_outside_of_kernels_is_described) {
  std::string output;
  CHECK(run_again("stray access", output) != 0);
  CHECK(output.find("fault: 0 bytes behind the end of 'floats' (256 bytes)") != std::string::npos);
}

TEST(failures_do_not_pile_up) {
  GuardedBuffer<int> output(256, "output");
  for (int round = 0; round < (kTsan ? 20 : 200); ++round) {
    CHECK_THROWS(KernelError, "deadlock", launch(barrier_against_shuffle, 4, 64, 0, output.data()));
    CHECK_THROWS(KernelError, "deadlock", launch(barrier_for_some, 4, 64, 0, 63u));
  }
  launch(barrier_for_some, 4, 64, 0, 64u);
}

namespace {

/// What ends the process, or would; see run_again().
bool run_fatal(const std::string& what) {
  GuardedBuffer<float> floats(ramp<float>(64), "floats");
  GuardedBuffer<int> ints(ramp<int>(64), "ints");
  if (what == "race in block") {
    launch(reverse_without_barrier<float>, 1, 64, 64 * sizeof(float), floats.data());
  } else if (what == "race in warp") {
    launch(swap_neighbours<false>, 1, 64, 64 * sizeof(int), ints.data());
  } else if (what == "race of blocks") {
    launch(read_of_other_block, 63, 1, 0, ints.data());
  } else if (what == "stray access") {
    launch(write_at, 1, 1, 0, floats.data(), 0ll);
    volatile float* const outside = floats.data() + floats.size();
    *outside = 1.0f;
  } else if (what == "shared overrun") {
    launch(write_shared_at, 1, 1, 20, 5);
  } else {
    return false;
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  program = argv[0];
  if (argc == 2 && run_fatal(argv[1])) return 0;
  return check::main(argc, argv);
}
