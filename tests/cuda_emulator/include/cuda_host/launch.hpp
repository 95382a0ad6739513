// Launching kernels on the host: what a launch may be, which blocks run where, what becomes of a
// failure.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "worker.hpp"

namespace dcls::host_cuda {

/// A launch that CUDA would refuse.
struct LaunchError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// The schedule that the environment variable DCLS_HOST_CUDA_ORDER asks for: "forward" (also if it
/// is not set), "reverse", "random" or "random:SEED".
/// @throws LaunchError for anything else.
inline Schedule schedule_from_environment() {
  const char* const text = std::getenv("DCLS_HOST_CUDA_ORDER");
  const std::string order = text == nullptr ? "forward" : text;
  if (order == "forward") return {Order::kForward, 0};
  if (order == "reverse") return {Order::kReverse, 0};
  if (order == "random") return {Order::kRandom, 0};
  if (order.rfind("random:", 0) == 0 && order.size() > 7 && order.size() <= 25 &&
      order.find_first_not_of("0123456789", 7) == std::string::npos) {
    return {Order::kRandom, std::stoull(order.substr(7))};
  }
  throw LaunchError("DCLS_HOST_CUDA_ORDER is '" + order +
                    "', takes forward, reverse, random or random:SEED");
}

/// As schedule_from_environment() takes it.
inline std::string to_string(const Schedule& schedule) {
  if (schedule.order == Order::kForward) return "forward";
  if (schedule.order == Order::kReverse) return "reverse";
  return "random:" + std::to_string(schedule.seed);
}

/// Forward, reverse and `random_count` random ones: a correct kernel gives bitwise the same in all
/// of them.
inline std::vector<Schedule> all_schedules(unsigned random_count = 3) {
  std::vector<Schedule> schedules = {{Order::kForward, 0}, {Order::kReverse, 0}};
  for (unsigned i = 1; i <= random_count; ++i) schedules.push_back({Order::kRandom, i});
  return schedules;
}

struct LaunchOptions {
  Schedule schedule = schedule_from_environment();
  /// The dynamic shared memory a block may have; as on a GPU, more than 48 KiB must be opted in to
  /// (up to 227 KiB).
  std::size_t shared_limit = 48 * 1024;
  /// The kernel's __launch_bounds__, which the host does not see otherwise.
  unsigned max_block_threads = kMaxBlockThreads;
  /// Run only these blocks of the grid, numbered with x fastest: for grids that are too large to
  /// run whole.
  std::uint64_t first_block = 0;
  std::uint64_t block_count = std::numeric_limits<std::uint64_t>::max();
  /// OS threads; 0 for as many as OpenMP would take, at most 16.
  int os_threads = 0;
};

namespace detail {

inline void check_launch(const LaunchOptions& options, const Launch& launch) {
  const auto check = [](bool valid, const std::string& what, std::uint64_t got, std::uint64_t max) {
    if (valid) return;
    throw LaunchError(what + " is " + std::to_string(got) + ", takes 1 to " + std::to_string(max));
  };
  const auto check_axis = [&](const char* name, unsigned got, unsigned max) {
    check(got >= 1 && got <= max, name, got, max);
  };
  check_axis("grid.x", launch.grid.x, 0x7fffffffu);
  check_axis("grid.y", launch.grid.y, 65535);
  check_axis("grid.z", launch.grid.z, 65535);
  check_axis("block.x", launch.block.x, 1024);
  check_axis("block.y", launch.block.y, 1024);
  check_axis("block.z", launch.block.z, 64);
  const std::uint64_t threads = std::uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const unsigned most = std::min(options.max_block_threads, kMaxBlockThreads);
  check(threads <= most, "the number of threads of a block", threads, most);
  if (options.shared_limit > kMaxSharedBytes) {
    throw LaunchError("shared_limit is " + std::to_string(options.shared_limit) + ", takes up to " +
                      std::to_string(kMaxSharedBytes));
  }
  if (launch.shared_bytes > options.shared_limit) {
    throw LaunchError("shared_bytes is " + std::to_string(launch.shared_bytes) + ", takes up to " +
                      std::to_string(options.shared_limit) + " (LaunchOptions::shared_limit)");
  }
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  check(options.first_block < blocks, "first_block + 1", options.first_block + 1, blocks);
  if (options.block_count == 0) throw LaunchError("block_count is 0, takes at least 1");
  if (active_worker != nullptr) throw LaunchError("a kernel cannot launch a kernel");
}

/// The n-th block to run of a range of `count`: a permutation of 0 to count - 1.
inline std::uint64_t block_at(const Schedule& schedule, std::uint64_t n, std::uint64_t count) {
  if (schedule.order == Order::kForward) return n;
  if (schedule.order == Order::kReverse) return count - 1 - n;
  // Any stride coprime to the count visits each once.
  std::uint64_t stride = 1 + (schedule.seed + 1) * 40503u % 65521u;
  while (std::gcd(stride, count) != 1) ++stride;
  return (n % count * stride + schedule.seed) % count;
}

/// Workers keep their stacks; so launches borrow them and give them back.
class WorkerPool {
 public:
  static WorkerPool& instance() {
    static WorkerPool* const pool = new WorkerPool;  // never destroyed: threads may outlive main
    return *pool;
  }
  std::unique_ptr<Worker> borrow() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> worker = std::move(idle_.back());
    idle_.pop_back();
    return worker;
  }
  void give_back(std::unique_ptr<Worker> worker) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(worker));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

/// Turns a fault inside a kernel into a KernelError; describes any other on stderr and leaves it to
/// who had it before.
class FaultHandler {
 public:
  static void install() {
    static const bool once = [] {
      struct sigaction action{};
      action.sa_sigaction = &handle;
      // On its own stack, because the fault may be the end of a fiber's; not blocking itself,
      // because it never returns from a kernel.
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      sigemptyset(&action.sa_mask);
      sigaction(SIGSEGV, &action, &previous(SIGSEGV));
      sigaction(SIGBUS, &action, &previous(SIGBUS));
      return true;
    }();
    static_cast<void>(once);
  }

 private:
  static struct sigaction& previous(int signal) {
    static struct sigaction segv, bus;
    return signal == SIGSEGV ? segv : bus;
  }
  static void handle(int signal, siginfo_t* info, void*) {
    if (active_worker != nullptr && active_worker->in_kernel()) active_worker->fault(info->si_addr);
    std::fprintf(stderr, "fault: %s\n", GuardedMapping::describe(info->si_addr).c_str());
    sigaction(signal, &previous(signal), nullptr);
  }
};

/// Runs work(0) to work(count - 1), each on an OS thread of its own. Libgomp is not instrumented
/// for ThreadSanitizer, which would take its hand-overs for races.
template <class Work>
void on_os_threads(unsigned count, const Work& work) {
#if defined(DCLS_HOST_CUDA_TSAN)
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
#else
  if (count == 1) return work(0);
#pragma omp parallel for num_threads(count) schedule(static, 1)
  for (unsigned i = 0; i < count; ++i) work(i);
#endif
}

inline unsigned os_threads_for(const LaunchOptions& options, std::uint64_t blocks) {
  int most = options.os_threads;
  if (most <= 0) most = std::min(omp_get_max_threads(), 16);
#if defined(DCLS_HOST_CUDA_TSAN)
  most = std::max(most, 2);  // blocks of the same OS thread are never seen to race
#endif
  return static_cast<unsigned>(std::min(blocks, static_cast<std::uint64_t>(most)));
}

inline void run_grid(const LaunchOptions& options, const Launch& launch) {
  check_launch(options, launch);
  FaultHandler::install();
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const std::uint64_t count = std::min(options.block_count, blocks - options.first_block);
  const unsigned os_threads = os_threads_for(options, count);

  std::vector<std::unique_ptr<Worker>> workers;
  for (unsigned i = 0; i < os_threads; ++i) {
    workers.push_back(WorkerPool::instance().borrow());
    workers.back()->prepare(launch);
  }
  std::atomic<bool> failed{false};
  std::vector<std::string> failures(os_threads);
  on_os_threads(os_threads, [&](unsigned i) {
    workers[i]->attach();
    for (std::uint64_t n = i; n < count && !failed.load(std::memory_order_relaxed);
         n += os_threads) {
      const std::uint64_t b = options.first_block + block_at(launch.schedule, n, count);
      const std::uint64_t row = b / launch.grid.x;
      const uint3 index{static_cast<unsigned>(b % launch.grid.x),
                        static_cast<unsigned>(row % launch.grid.y),
                        static_cast<unsigned>(row / launch.grid.y)};
      failures[i] = workers[i]->run_block(index, launch.schedule.seed + b);
      if (!failures[i].empty()) failed.store(true, std::memory_order_relaxed);
    }
    workers[i]->detach();
  });
  for (auto& worker : workers) WorkerPool::instance().give_back(std::move(worker));
  for (const std::string& failure : failures) {
    if (!failure.empty()) throw KernelError(failure);
  }
}

/// The parameters as they lie in a GPU's constant memory.
template <class... Parameters>
std::vector<unsigned char> parameter_bytes(const std::tuple<Parameters...>& parameters) {
  std::vector<unsigned char> bytes;
  const auto add = [&](const auto& parameter) {
    constexpr std::size_t kAlign = alignof(std::decay_t<decltype(parameter)>);
    const std::size_t at = (bytes.size() + kAlign - 1) / kAlign * kAlign;
    bytes.resize(at + sizeof(parameter));
    std::memcpy(bytes.data() + at, &parameter, sizeof(parameter));
  };
  std::apply([&](const auto&... each) { (add(each), ...); }, parameters);
  return bytes;
}

/// Which kernels were launched, and how often.
struct LaunchRecord {
  std::mutex mutex;
  std::map<const void*, std::uint64_t> counts;
  static LaunchRecord& instance() {
    static LaunchRecord* const record = new LaunchRecord;
    return *record;
  }
};

}  // namespace detail

/// A launch, as an observer sees it.
struct ObservedLaunch {
  const void* kernel;
  dim3 grid, block;
  std::size_t shared_bytes;
  std::vector<unsigned char> parameters;
};

/// Is told of each launch, if it is set, and returns whether it shall run.
inline std::function<bool(const ObservedLaunch&)> launch_observer;

/// Runs kernel<<<grid, block, shared_bytes>>>(args...) and waits for it.
/// @throws LaunchError if CUDA would refuse the launch; nothing has run then.
/// @throws KernelError if a thread failed; some blocks have run then, and others have not.
template <class... Parameters, class... Arguments>
void launch(const LaunchOptions& options, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "kernel parameters are copied byte by byte");
  static_assert((!std::is_reference_v<Parameters> && ...), "kernel parameters are passed by value");
  static_assert((std::size_t{0} + ... + sizeof(Parameters)) <= 4096,
                "CUDA has 4096 bytes for the parameters of a kernel");
  const std::tuple<Parameters...> parameters(std::forward<Arguments>(arguments)...);
  if (launch_observer && !launch_observer({reinterpret_cast<const void*>(kernel), grid, block,
                                           shared_bytes, detail::parameter_bytes(parameters)})) {
    return;
  }
  const auto body = [&] { std::apply(kernel, parameters); };
  Launch plan{grid, block, shared_bytes, options.schedule, nullptr, &body};
  plan.body = [](const void* closure) { (*static_cast<const decltype(body)*>(closure))(); };
  detail::run_grid(options, plan);
  detail::LaunchRecord& record = detail::LaunchRecord::instance();
  const std::lock_guard<std::mutex> lock(record.mutex);
  ++record.counts[reinterpret_cast<const void*>(kernel)];
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
            Arguments&&... arguments) {
  launch(LaunchOptions{}, kernel, grid, block, shared_bytes, std::forward<Arguments>(arguments)...);
}

/// How many launches of this kernel have succeeded in this process: to compare the kernels that are
/// instantiated with those that are tested.
template <class... Parameters>
std::uint64_t launch_count(void (*kernel)(Parameters...)) {
  detail::LaunchRecord& record = detail::LaunchRecord::instance();
  const std::lock_guard<std::mutex> lock(record.mutex);
  const auto found = record.counts.find(reinterpret_cast<const void*>(kernel));
  return found == record.counts.end() ? 0 : found->second;
}

}  // namespace dcls::host_cuda
