// Self-tests of the CUDA-on-host harness: that it computes what a GPU computes.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "cuda_host.hpp"
#include "self_test.hpp"
#include "self_test_kernels.cuh"

using namespace dcls::host_cuda;
using namespace dcls::host_cuda::self_test;

namespace {

template <class T>
void check_block_sum() {
  constexpr int kThreads = 96;
  for (const int size : {1, 2, 95, 96, 97, 1000}) {
    const check::Case here(sizeof(T), " bytes, size ", size);
    const std::vector<T> values = ramp<T>(static_cast<std::size_t>(size));
    const unsigned blocks = static_cast<unsigned>((size + kThreads - 1) / kThreads);
    std::vector<T> expected(blocks, T(0));
    for (std::size_t i = 0; i < values.size(); ++i) expected[i / kThreads] += values[i];
    in_all_schedules([&](const LaunchOptions& options) {
      const GuardedBuffer<T> input(values, "input");
      GuardedBuffer<T> output(blocks, "output");
      launch(options, block_sum<T, kThreads>, blocks, kThreads, 0, output.data(), input.data(),
             size);
      CHECK_SAME_BITS(output, expected);  // small integers: exact in any order
    });
  }
}

/// What the shuffles give by the programming guide, lane by lane; see shuffles().
template <class T>
std::vector<T> expected_shuffles(const std::vector<T>& values, int argument, int width) {
  const int n = static_cast<int>(values.size());
  std::vector<T> expected;
  const auto at = [&](int t) { return values[static_cast<std::size_t>(t)]; };
  for (int kind = 0; kind < 4; ++kind) {
    for (int t = 0; t < n; ++t) {
      const int lane = t % width;  // within its group; groups never span warps
      const int group = t - lane;
      int source = t;
      if (kind == 0) source = group + argument % width;
      if (kind == 1 && lane - argument >= 0) source = t - argument;
      if (kind == 2 && lane + argument < width) source = t + argument;
      if (kind == 3) {
        const int partner = t / 32 * 32 + ((t % 32) ^ argument);
        if (partner < group + width) source = partner;  // earlier groups may be read, later not
      }
      expected.push_back(at(source));
    }
  }
  return expected;
}

}  // namespace

TEST(indices_cover_3d_grid) {
  const dim3 sizes(7, 5, 3);
  for (const dim3 block : {dim3(1), dim3(4, 2, 1), dim3(3, 3, 2), dim3(32, 8, 4)}) {
    const check::Case here("block ", block.x, " x ", block.y, " x ", block.z);
    const dim3 grid((sizes.x + block.x - 1) / block.x, (sizes.y + block.y - 1) / block.y,
                    (sizes.z + block.z - 1) / block.z);
    std::vector<int> expected;
    for (unsigned z = 0; z < sizes.z; ++z) {
      for (unsigned y = 0; y < sizes.y; ++y) {
        for (unsigned x = 0; x < sizes.x; ++x) {
          expected.push_back(static_cast<int>((z * grid.y * block.y + y) * grid.x * block.x + x));
        }
      }
    }
    in_all_schedules([&](const LaunchOptions& options) {
      GuardedBuffer<int> output(std::vector<int>(expected.size(), 0), "output");
      launch(options, write_index, grid, block, 0, output.data(), sizes);
      CHECK_SAME_BITS(output, expected);
    });
  }
}

TEST(block_sum_in_static_shared_memory) {
  check_block_sum<float>();
  check_block_sum<double>();
  check_block_sum<int>();
}

TEST(shuffles_at_every_width) {
  const std::vector<float> values = ramp<float>(64);
  const std::vector<double> doubles = ramp<double>(64);
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (const int argument : {0, 1, 2, 3, 7, 15, 16, 31}) {
      const check::Case here("width ", width, " argument ", argument);
      GuardedBuffer<float> output(4 * 64, "output");
      launch(shuffles<float>, 1, 64, 0, output.data(), values.data(), argument, width);
      CHECK_SAME_BITS(output, expected_shuffles(values, argument, width));
      GuardedBuffer<double> wide(4 * 64, "output");
      launch(shuffles<double>, 1, 64, 0, wide.data(), doubles.data(), argument, width);
      CHECK_SAME_BITS(wide, expected_shuffles(doubles, argument, width));
    }
  }
}

TEST(warp_sums_with_partial_last_warp) {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (const unsigned threads : {8u, 32u, 40u, 96u, 112u, 1024u}) {
      if (threads % static_cast<unsigned>(width) != 0) continue;
      const check::Case here("width ", width, ", ", threads, " threads");
      const std::vector<double> values = ramp<double>(threads);
      std::vector<double> expected(threads);
      for (std::size_t t = 0; t < threads; ++t) {
        const std::size_t size = static_cast<std::size_t>(width);
        for (std::size_t i = 0; i < size; ++i) expected[t] += values[t / size * size + i];
      }
      in_all_schedules([&](const LaunchOptions& options) {
        GuardedBuffer<double> output(threads, "output");
        launch(options, warp_sum<double>, 1, threads, 0, output.data(), values.data(), width);
        CHECK_SAME_BITS(output, expected);
      });
    }
  }
}

TEST(votes_over_full_and_partial_masks) {
  for (const unsigned n : {1u, 2u, 31u, 32u, 45u}) {
    for (std::size_t pattern = 0; pattern < 4; ++pattern) {
      const check::Case here(n, " threads, pattern ", pattern);
      std::vector<int> input(n);
      for (unsigned t = 0; t < n; ++t) {
        input[t] = std::array<bool, 4>{false, true, t % 3 == 0, t % 2 == 1}[pattern] ? 2 : 0;
      }
      std::vector<unsigned> expected(std::size_t{5} * n);
      for (unsigned t = 0; t < n; ++t) {
        unsigned ballot = 0, even = 0, all = 1, odd_any = 0;
        for (unsigned u = t / 32 * 32; u < n && u < t / 32 * 32 + 32; ++u) {
          const unsigned bit = input[u] != 0 ? 1u << u % 32 : 0;
          ballot |= bit;
          if (u % 2 == 0) even |= bit;
          if (u % 2 == 1 && bit != 0) odd_any = 1;
          if (bit == 0) all = 0;
        }
        expected[0 * n + t] = ballot;
        expected[1 * n + t] = ballot != 0;
        expected[2 * n + t] = all;
        expected[3 * n + t] = t % 2 == 0 ? even : odd_any;
        expected[4 * n + t] = ballot;
      }
      in_all_schedules([&](const LaunchOptions& options) {
        GuardedBuffer<unsigned> output(std::size_t{5} * n, "output");
        launch(options, votes, 1, n, 0, output.data(), input.data());
        CHECK_SAME_BITS(output, expected);
      });
    }
  }
}

TEST(lanes_that_left_do_not_hold_up_a_collective) {
  in_all_schedules([&](const LaunchOptions& options) {
    GuardedBuffer<int> output(8, "output");
    launch(options, sum_of_the_rest, 1, 32, 0, output.data(), 8);
    CHECK_SAME_BITS(output, std::vector<int>(8, 28));
  });
}

TEST(syncwarp_orders_shared_memory) {
  std::vector<int> expected = ramp<int>(64);
  for (std::size_t t = 0; t < 64; t += 2) std::swap(expected[t], expected[t + 1]);
  in_all_schedules([&](const LaunchOptions& options) {
    GuardedBuffer<int> data(ramp<int>(64), "data");
    launch(options, swap_neighbours<true>, 1, 64, 64 * sizeof(int), data.data());
    CHECK_SAME_BITS(data, expected);
  });
}

TEST(dynamic_shared_memory) {
  for (const unsigned threads : {1u, 2u, 33u, kTsan ? 128u : 1024u}) {  // TSan is slow at many
    const check::Case here(threads, " threads");
    const std::vector<double> values = ramp<double>(std::size_t{3} * threads);
    std::vector<double> expected(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      expected[i] = values[i / threads * threads + (threads - 1 - i % threads)];
    }
    in_all_schedules([&](const LaunchOptions& options) {
      GuardedBuffer<double> data(values, "data");
      launch(options, reverse_blocks<double>, 3, threads, threads * sizeof(double), data.data(), 5);
      CHECK_SAME_BITS(data, expected);
    });
  }
}

TEST(unwritten_shared_memory_is_nan) {
  GuardedBuffer<float> floats(std::vector<float>(66, 0.0f), "floats");
  launch(reverse_blocks<float>, 2, 33, 33 * sizeof(float), floats.data(), 1);  // leaves zeros
  launch(read_unwritten_shared<float>, 2, 33, 33 * sizeof(float), floats.data());
  for (const float value : floats) CHECK(std::isnan(value));
  GuardedBuffer<double> doubles(std::vector<double>(66, 0.0), "doubles");
  launch(read_unwritten_shared<double>, 2, 33, 33 * sizeof(double), doubles.data());
  for (const double value : doubles) CHECK(std::isnan(value));
}

TEST(registers_survive_waits) {
  constexpr int kRounds = 40;
  constexpr unsigned kThreads = 100;
  std::vector<double> expected(kThreads);
  for (unsigned t = 0; t < kThreads; ++t) {
    // The kernel alone on its block has no one to wait for.
    launch(
        +[](double* out, unsigned thread) {
          double a = thread + 0.5, b = thread * 2.0, c = thread * 3.0, d = thread * 5.0;
          double e = thread * 7.0, f = thread * 11.0;
          long i = thread, j = 2 * i, k = 3 * i, l = 5 * i, m = 7 * i;
          for (int round = 0; round < kRounds; ++round) {
            a += b, b += c, c += d, d += e, e += f, f += a;
            i += j, j += k, k += l, l += m, m += i % 1000;
            i ^= k, k ^= m, f *= 0.5;
          }
          out[thread] = a + b + c + d + e + f + static_cast<double>((i + j + k + l + m) % 100003);
        },
        1, 1, 0, expected.data(), t);
  }
  in_all_schedules([&](const LaunchOptions& options) {
    GuardedBuffer<double> output(kThreads, "output");
    launch(options, hold_registers, 1, kThreads, 0, output.data(), kRounds);
    CHECK_SAME_BITS(output, expected);
  });
}

TEST(part_of_a_huge_grid) {
  LaunchOptions options;
  options.first_block = 0x7fffffffull * 2 - 3;
  options.block_count = 3;
  for (const Schedule& schedule : all_schedules()) {
    options.schedule = schedule;
    GuardedBuffer<long long> output(std::vector<long long>(3, 0), "output");
    launch(
        options,
        +[](long long* out) {
          out[blockIdx.x - 0x7ffffffcu] += (static_cast<long long>(blockIdx.y) << 32) + blockIdx.x;
        },
        dim3(0x7fffffff, 2), 1, 0, output.data());
    for (std::size_t i = 0; i < 3; ++i)
      CHECK_EQ(output[i], (1ll << 32) + 0x7ffffffcll + static_cast<long long>(i));
  }
  options.first_block = 8;
  CHECK_THROWS(LaunchError, "first_block + 1 is 9, takes 1 to 8",
               launch(options, barrier_for_some, 8, 1, 0, 0u));
}

TEST(each_schedule_is_a_different_order) {
  std::vector<std::vector<int>> thread_orders, block_orders;
  for (const Schedule& schedule : all_schedules()) {
    LaunchOptions options;
    options.schedule = schedule;
    options.os_threads = 1;
    if (kTsan) continue;  // the kernel races on purpose
    std::vector<int> order(1, 0);
    order.reserve(51);
    launch(
        options, +[](std::vector<int>* out) { out->push_back(static_cast<int>(threadIdx.x)); }, 1,
        50, 0, &order);
    CHECK_EQ(order.size(), 51u);
    for (const auto& other : thread_orders) CHECK(order != other);
    thread_orders.push_back(order);
    order.resize(1);
    launch(
        options, +[](std::vector<int>* out) { out->push_back(static_cast<int>(blockIdx.x)); }, 50,
        1, 0, &order);
    CHECK_EQ(order.size(), 51u);
    for (const auto& other : block_orders) CHECK(order != other);
    block_orders.push_back(order);
  }
  for (const std::uint64_t count : {1ull, 2ull, 6ull, 97ull, 2310ull}) {
    for (const Schedule& schedule : all_schedules(20)) {
      std::vector<bool> seen(count, false);
      for (std::uint64_t n = 0; n < count; ++n) seen[detail::block_at(schedule, n, count)] = true;
      CHECK(std::find(seen.begin(), seen.end(), false) == seen.end());
    }
  }
}

TEST(order_from_the_environment) {
  const char* const before = std::getenv("DCLS_HOST_CUDA_ORDER");
  const std::string saved = before == nullptr ? "" : before;
  const auto with = [](const char* text) {
    setenv("DCLS_HOST_CUDA_ORDER", text, 1);
    return LaunchOptions{}.schedule;
  };
  CHECK_EQ(with("forward").order, Order::kForward);
  CHECK_EQ(with("reverse").order, Order::kReverse);
  CHECK_EQ(with("random").order, Order::kRandom);
  CHECK_EQ(with("random:42").order, Order::kRandom);
  CHECK_EQ(with("random:42").seed, 42u);
  for (const char* const wrong : {"", "backward", "random:", "random:x", "random:-1"}) {
    CHECK_THROWS(LaunchError, "takes forward, reverse, random", with(wrong));
  }
  unsetenv("DCLS_HOST_CUDA_ORDER");
  CHECK_EQ(LaunchOptions{}.schedule.order, Order::kForward);
  if (before != nullptr) setenv("DCLS_HOST_CUDA_ORDER", saved.c_str(), 1);
}

#if !defined(DCLS_HOST_CUDA_TSAN)  // there each thread has its own
TEST(threads_without_rendezvous_share_a_stack) {
  std::vector<std::uintptr_t> stacks(256);
  launch(
      +[](std::uintptr_t* out) {
        out[threadIdx.x] = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
      },
      1, 256, 0, stacks.data());
  CHECK_SAME_BITS(stacks, std::vector<std::uintptr_t>(256, stacks[0]));
}
#endif

TEST(launches_from_several_os_threads) {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([] {
      for (int round = 0; round < 20; ++round) {
        GuardedBuffer<float> data(ramp<float>(128), "data");
        launch(reverse_blocks<float>, 2, 64, 64 * sizeof(float), data.data(), 2);
        CHECK_SAME_BITS(data, ramp<float>(128));
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(launches_are_counted) {
  const std::uint64_t before = launch_count(warp_sum<float>);
  const float input[4] = {1, 2, 3, 4};
  float output[4];
  launch(warp_sum<float>, 1, 4, 0, output, input, 4);
  CHECK_EQ(output[0], 10.0f);
  CHECK_EQ(launch_count(warp_sum<float>), before + 1);
  CHECK_EQ(launch_count(warp_sum<int>), 0u);
  CHECK_THROWS(LaunchError, "grid.x", launch(warp_sum<float>, 0, 4, 0, output, input, 4));
  CHECK_EQ(launch_count(warp_sum<float>), before + 1);
}

TEST(throughput) {
  constexpr int kBlocks = kTsan ? 16 : kAsan ? 256 : 4096;
  constexpr unsigned kThreads = 256;
  const std::vector<float> values = ramp<float>(kBlocks * kThreads);
  const auto rate = [&](const char* what, const auto& run) {
    GuardedBuffer<float> data(values, "data");
    const auto begin = std::chrono::steady_clock::now();
    run(data.data());
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    std::printf("  %s: %.2f million threads a second\n", what,
                kBlocks * kThreads / spent.count() / 1e6);
    return data.to_vector();
  };
  std::vector<float> expected = values;
  for (float& value : expected) value *= 2.0f;
  CHECK_SAME_BITS(rate("no rendezvous",
                       [&](float* data) {
                         launch(scale, kBlocks, kThreads, 0, data, static_cast<const float*>(data),
                                static_cast<long long>(values.size()), 2.0f);
                       }),
                  expected);
  CHECK_SAME_BITS(
      rate("2 barriers each",
           [&](float* data) {
             launch(reverse_blocks<float>, kBlocks / 2, kThreads, kThreads * 4, data, 1);
             launch(reverse_blocks<float>, kBlocks / 2, kThreads, kThreads * 4, data, 1);
           }),
      values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    expected[i] = 0;
    for (std::size_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) expected[i] += values[j];
  }
  CHECK_SAME_BITS(rate("5 shuffles each",
                       [&](float* data) {
                         launch(
                             +[](float* inout) {
                               float& mine = inout[blockIdx.x * blockDim.x + threadIdx.x];
                               for (int d = 16; d > 0; d /= 2)
                                 mine += __shfl_xor_sync(0xffffffffu, mine, d);
                             },
                             kBlocks, kThreads, 0, data);
                       }),
                  expected);
}

CHECK_MAIN()
