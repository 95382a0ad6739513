#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <new>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include "cpu/runtime/teams.hpp"

namespace dcls::cpu {

/// What a parallel region orders, told to ThreadSanitizer, which does not see into libgomp: all
/// before fork() comes before what follows begin(), all before end() before what follows join().
/// Among the threads of a region nothing is ordered. Without the sanitizer these do nothing.
namespace region {
#if defined(__SANITIZE_THREAD__)
static char forks, joins;
inline void fork() { __tsan_release(&forks); }
inline void begin() { __tsan_acquire(&forks); }
inline void end() { __tsan_release(&joins); }
inline void join() { __tsan_acquire(&joins); }
#else
inline void fork() {}
inline void begin() {}
inline void end() {}
inline void join() {}
#endif
}  // namespace region

/// Memory for each thread of a parallel_for, allocated before it: nothing may throw inside.
class ThreadScratch {
 public:
  ThreadScratch(std::int64_t bytes_per_thread, int num_threads)
      : stride_((static_cast<std::size_t>(checked(bytes_per_thread, num_threads)) + kAlign - 1) /
                kAlign * kAlign),
        memory_(static_cast<std::byte*>(::operator new(
            std::max<std::size_t>(stride_* static_cast<std::size_t>(num_threads), kAlign),
            std::align_val_t{kAlign}))) {}

  void* of(int thread) const { return memory_.get() + stride_ * static_cast<std::size_t>(thread); }

 private:
  // Two cache lines, so that no two threads write to one line or to an adjacent-line prefetch.
  static constexpr std::size_t kAlign = 128;
  /// More bytes than there can be are no overflow.
  static std::int64_t checked(std::int64_t bytes, int num_threads) {
    constexpr std::int64_t kMost = std::int64_t{1} << 62;
    if (bytes < 0 || bytes > kMost / num_threads) throw std::bad_alloc();
    return bytes;
  }
  struct Free {
    void operator()(std::byte* memory) const {
      ::operator delete(memory, std::align_val_t{kAlign});
    }
  };
  std::size_t stride_;
  std::unique_ptr<std::byte, Free> memory_;
};

/// How many threads share some items, in chunks of at least `grain`.
struct Share {
  int threads;
  std::int64_t grain;
};

inline std::int64_t now_in_nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Time that this thread has had a core.
inline std::int64_t nanoseconds_of_thread() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

/// The share of at most `num_threads` threads in `count` items that take one thread about
/// `nanoseconds` each. Less than some tens of microseconds are not worth waking a thread.
inline Share share(std::int64_t count, double nanoseconds, int num_threads) {
  constexpr double kWorthWaking = 32768;
  const double items = kWorthWaking / std::max(nanoseconds, kWorthWaking / 0x1p40);
  const std::int64_t grain = 1 + static_cast<std::int64_t>(items);
#if defined(_OPENMP)
  const std::int64_t chunks = std::max<std::int64_t>(1, count / grain);
  const int threads = static_cast<int>(std::min<std::int64_t>(std::max(1, num_threads), chunks));
  if (threads == 1 ||
      team_account.is_closed_to(static_cast<double>(count) * nanoseconds, now_in_nanoseconds())) {
    return {1, grain};
  }
  return {threads, grain};
#else
  (void)count, (void)num_threads;
  return {1, grain};
#endif
}

/// Splits [0, count) into contiguous chunks, hands them to the threads as they come free, and calls
/// function(begin, end, thread). Which thread gets a chunk must not change a result.
template <typename Function>
void parallel_for(std::int64_t count, const Share& share, Function&& function) {
#if defined(_OPENMP)
  if (share.threads > 1) {
    // A few chunks a thread, so that a core busy with something else does not hold up the rest.
    const std::int64_t chunk = std::max(share.grain, count / (8 * share.threads));
    const std::int64_t start = now_in_nanoseconds();
    std::atomic<std::int64_t> alone{0};  // what one thread would take
    region::fork();
#pragma omp parallel num_threads(share.threads)
    {
      region::begin();
      const int thread = omp_get_thread_num();
      const std::int64_t before = nanoseconds_of_thread();
#pragma omp for schedule(dynamic) nowait
      for (std::int64_t begin = 0; begin < count; begin += chunk) {
        function(begin, std::min(begin + chunk, count), thread);
      }
      alone.fetch_add(nanoseconds_of_thread() - before, std::memory_order_relaxed);
      region::end();
    }
    region::join();
    const std::int64_t end = now_in_nanoseconds();
    team_account.settle(static_cast<double>(alone.load()), static_cast<double>(end - start), end);
    return;
  }
#endif
  (void)share;
  function(std::int64_t{0}, count, 0);
}

}  // namespace dcls::cpu
