// One block of a launch on the host: its threads, their rendezvous, its dynamic shared memory.
//
// A Worker runs one block at a time on one OS thread. The threads of the block run on fibers, one
// after another: a fiber whose CUDA thread ends takes the next one that has not begun, so a kernel
// without rendezvous runs on a single fiber and never switches. A thread that waits keeps its
// fiber, and another fiber takes over.
//
// Under ThreadSanitizer every CUDA thread has its own fiber and is a thread of its own to the
// sanitizer, ordered with the others by nothing but the rendezvous of the kernel: a missing barrier
// is then reported as a data race.
#pragma once

#include <signal.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "async_copies.hpp"
#include "fiber.hpp"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace dcls::host_cuda {

/// A kernel did what CUDA leaves undefined, or threw; the message names the block and the thread.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// In which order the blocks of a grid and the threads of a block run. No kernel may depend on it.
enum class Order { kForward, kReverse, kRandom };

struct Schedule {
  Order order = Order::kForward;
  std::uint64_t seed =
      0;  // of Order::kRandom: same seed, same order, whatever the number of OS threads
};

/// Where in the kernel's source a rendezvous stands.
struct Site {
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }
};

enum class Op : std::uint8_t {
  kSyncThreads,
  kSyncWarp,
  kShfl,
  kShflUp,
  kShflDown,
  kShflXor,
  kBallot,
  kAny,
  kAll,
  kExchange
};

/// Registers that a lane brings to an exchange, at most.
constexpr unsigned kExchangeWords = 6;

constexpr unsigned kWarpSize = 32;

/// What a thread that arrives at a rendezvous brings along.
struct Request {
  Op op;
  std::uint8_t value_bytes;  // of the type shuffled
  unsigned mask;
  unsigned argument;  // source lane, delta or lane mask of a shuffle
  unsigned width;
  std::uint64_t value;
  Site site;
  std::uint32_t words[kExchangeWords] = {};
};

/// What all blocks of a launch have in common.
struct Launch {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
  Schedule schedule;
  void (*body)(const void* closure);
  const void* closure;
};

constexpr unsigned kMaxBlockThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 227 * 1024;  // what one block can opt in to on sm_90

inline std::string to_string(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

class Worker;
inline thread_local Worker* active_worker = nullptr;

class Worker {
 public:
  Worker() { free_.reserve(kMaxBlockThreads); }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// Gets ready for the blocks of a launch; on any OS thread.
  void prepare(const Launch& launch);

  /// Makes this worker the one of the calling OS thread.
  void attach();
  void detach();

  /// Runs one block to its end. @returns what went wrong, or an empty string.
  std::string run_block(uint3 block_index, std::uint64_t seed);

  // What follows is called by the kernel, on one of its threads.

  /// Waits for the other threads that the request concerns. @returns the result of a warp
  /// collective.
  std::uint64_t rendezvous(const Request& request);
  /// Gives each lane of a whole warp the words of all its lanes; orders no memory accesses.
  void exchange(const Request& request, std::uint32_t (&all)[kWarpSize][kExchangeWords]);
  /// Ends the block with a message; never returns and runs no destructors, so it may pass noexcept
  /// functions.
  [[noreturn]] void fail(std::string what);
  /// The same for an address that must not be touched, from the signal handler; never returns.
  void fault(const void* address);
  bool in_kernel() const { return running_ != &main_; }

  DCLS_HOST_CUDA_UNTRACED uint3 thread_index() const { return threads_[current_].index; }
  DCLS_HOST_CUDA_UNTRACED uint3 block_index() const { return block_index_; }
  DCLS_HOST_CUDA_UNTRACED dim3 block_dim() const { return launch_->block; }
  DCLS_HOST_CUDA_UNTRACED dim3 grid_dim() const { return launch_->grid; }
  DCLS_HOST_CUDA_UNTRACED void* dynamic_shared() const { return shared_begin_; }
  /// Of the calling thread.
  DCLS_HOST_CUDA_UNTRACED AsyncCopies& async_copies() { return copies_[current_]; }

 private:
  enum class State : std::uint8_t { kRunnable, kWaiting, kExited };
  struct Thread {
    uint3 index;
    State state;
    Fiber* fiber;  // none before the thread begins
    Request request;
    std::uint64_t result;
  };
  struct Warp {
    unsigned live;                                       // lanes that have not exited
    unsigned waiting;                                    // lanes in a warp collective
    std::uint32_t exchanged[kWarpSize][kExchangeWords];  // by the last exchange
  };
  static constexpr std::size_t kFrontCanary = 64;

  // Scheduling.
  static void fiber_main();
  void run_thread();
  Fiber& next_fiber();
  Fiber* fiber_for(unsigned thread);
  void go_on();
  void make_runnable(unsigned first, unsigned count, unsigned lanes);
  void recover();

  // Rendezvous.
  void arrive_at_barrier();
  void arrive_in_warp();
  void complete_if_all_arrived(unsigned warp, unsigned mask);
  std::uint64_t evaluate(unsigned thread, unsigned group);
  void leave_block();

  // Failures.
  void record(const std::string& what);
  void record(unsigned thread, const std::string& what);
  void record_fault();
  std::string describe_threads() const;

  // Dynamic shared memory.
  void poison_shared();
  void check_shared();

  // ThreadSanitizer: the harness itself runs in the context of the OS thread, the kernel in those
  // of its threads.
  void enter_kernel();
  void leave_kernel();
  void begin_thread_trace();
  void end_thread_trace();
  void end_block_trace();
  void trace_abandoned();
  void trace_rendezvous(unsigned first, unsigned count, unsigned lanes);

  const Launch* launch_ = nullptr;
  uint3 block_index_{};
  unsigned count_ = 0;
  unsigned current_ = 0;
  Fiber main_;
  Fiber* running_ = &main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
  std::array<Thread, kMaxBlockThreads> threads_;
  std::array<AsyncCopies, kMaxBlockThreads> copies_;
  std::array<unsigned, kMaxBlockThreads> runnable_;
  unsigned runnable_count_ = 0;
  std::array<Warp, kMaxBlockThreads / kWarpSize> warps_;
  unsigned exited_ = 0;
  unsigned at_barrier_ = 0;
  Site barrier_site_{};
  std::uint64_t random_ = 0;
  bool failed_ = false;
  bool faulted_ = false;
  std::string failure_;
  const void* fault_address_ = nullptr;
  GuardedMapping shared_{kFrontCanary + kMaxSharedBytes, "dynamic shared memory"};
  unsigned char* shared_begin_ = nullptr;
  GuardedMapping signal_stack_{64 * 1024, "signal stack"};
  bool own_signal_stack_ = false;
#if defined(DCLS_HOST_CUDA_TSAN)
  void* os_context_ = nullptr;
  char block_begin_ = 0;  // synchronisation objects, never written
  char block_end_ = 0;
#endif
};

}  // namespace dcls::host_cuda

#include "worker_diagnose.hpp"
#include "worker_rendezvous.hpp"
#include "worker_schedule.hpp"
