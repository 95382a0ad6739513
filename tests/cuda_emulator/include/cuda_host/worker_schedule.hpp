// Worker: blocks, and whose turn it is among the threads of one.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "worker.hpp"

namespace dcls::host_cuda {

inline void Worker::prepare(const Launch& launch) {
  launch_ = &launch;
  count_ = launch.block.x * launch.block.y * launch.block.z;
  unsigned t = 0;
  for (unsigned z = 0; z < launch.block.z; ++z) {
    for (unsigned y = 0; y < launch.block.y; ++y) {
      for (unsigned x = 0; x < launch.block.x; ++x) threads_[t++].index = uint3{x, y, z};
    }
  }
  // Kernels may count on 16 bytes of alignment; up to 15 bytes behind the end are canary, then
  // comes the guard page.
  shared_begin_ = shared_.end() - (launch.shared_bytes + 15) / 16 * 16;
  shared_.set_payload(shared_begin_, launch.shared_bytes);
#if defined(DCLS_HOST_CUDA_TSAN)
  // All of them here: a stack made later would take a lock, and so order this OS thread's blocks
  // with another's.
  while (fibers_.size() < count_) fibers_.push_back(std::make_unique<Fiber>(&fiber_main));
#endif
}

inline void Worker::attach() {
  active_worker = this;
#if defined(DCLS_HOST_CUDA_TSAN)
  os_context_ = __tsan_get_current_fiber();
#endif
  stack_t present{};
  sigaltstack(nullptr, &present);
  own_signal_stack_ = (present.ss_flags & SS_DISABLE) != 0;
  if (!own_signal_stack_) return;
  stack_t mine{};
  mine.ss_sp = signal_stack_.begin();
  mine.ss_size = static_cast<std::size_t>(signal_stack_.end() - signal_stack_.begin());
  sigaltstack(&mine, nullptr);
}

inline void Worker::detach() {
  active_worker = nullptr;
  if (!own_signal_stack_) return;
  stack_t none{};
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, nullptr);
}

inline std::string Worker::run_block(uint3 block_index, std::uint64_t seed) {
  block_index_ = block_index;
  random_ = seed;
#if defined(DCLS_HOST_CUDA_TSAN)
  free_.clear();  // not used: each thread has the fiber of its number
#endif
  runnable_count_ = exited_ = at_barrier_ = 0;
  for (unsigned t = 0; t < count_; ++t) {
    threads_[t].state = State::kRunnable;
    threads_[t].fiber = nullptr;
  }
  for (unsigned t = 0; t < count_; t += kWarpSize) {
    const unsigned lanes = count_ - t;
    warps_[t / kWarpSize] = {lanes >= kWarpSize ? ~0u : (1u << lanes) - 1, 0, {}};
  }
  make_runnable(0, count_, ~0u);
  poison_shared();
  go_on();
  if (faulted_) record_fault();
  if (failed_) recover();
  end_block_trace();
  if (failure_.empty()) check_shared();
  failed_ = false;
  return std::exchange(failure_, {});
}

DCLS_HOST_CUDA_UNTRACED inline void Worker::fiber_main() {
  Worker& worker = *active_worker;
  worker.running_->arrived();
  for (;;) {
    worker.run_thread();
    worker.leave_block();
    worker.go_on();
  }
}

DCLS_HOST_CUDA_UNTRACED inline void Worker::run_thread() {
  begin_thread_trace();
  enter_kernel();
  std::string thrown;
  bool threw = true;
  try {
    launch_->body(launch_->closure);
    threw = false;
    if (!copies_[current_].empty()) {
      thrown = "it ended before its asynchronous copies were waited for";
      copies_[current_].clear();
      threw = true;
    }
  } catch (const std::exception& error) {
    thrown = error.what();
  } catch (...) {
    thrown = "an exception that is no std::exception";
  }
  leave_kernel();
  end_thread_trace();
  if (threw) {
    end_block_trace();
    record(current_, "threw: " + thrown);
  }
}

/// Ends the turn of the thread that waits or has exited (or of run_block), until it is picked
/// again.
DCLS_HOST_CUDA_UNTRACED inline void Worker::go_on() {
  Fiber& from = *running_;
  Fiber& to = next_fiber();
  if (&to == &from) return;
  running_ = &to;
  Fiber::switch_to(from, to);
}

/// Picks the thread that runs next and gives its fiber; that of run_block if there is none.
inline Fiber& Worker::next_fiber() {
  if (runnable_count_ == 0 && exited_ != count_ && !failed_) {
    record("deadlock, no thread can go on: " + describe_threads());
  }
  if (failed_ || runnable_count_ == 0) return main_;
  if (launch_->schedule.order == Order::kRandom) {
    // splitmix64
    std::uint64_t r = random_ += 0x9e3779b97f4a7c15u;
    r = (r ^ (r >> 30)) * 0xbf58476d1ce4e5b9u;
    r = (r ^ (r >> 27)) * 0x94d049bb133111ebu;
    r ^= r >> 31;
    std::swap(runnable_[r % runnable_count_], runnable_[runnable_count_ - 1]);
  }
  current_ = runnable_[--runnable_count_];
  Thread& thread = threads_[current_];
  if (thread.fiber == nullptr) thread.fiber = fiber_for(current_);
  return failed_ ? main_ : *thread.fiber;
}

/// A fiber that is free to begin this thread; none, and a failure on record, if the system has no
/// more memory.
inline Fiber* Worker::fiber_for(unsigned thread) {
#if defined(DCLS_HOST_CUDA_TSAN)
  return fibers_[thread].get();
#else
  static_cast<void>(thread);
  if (free_.empty()) {
    try {
      fibers_.push_back(std::make_unique<Fiber>(&fiber_main));
    } catch (const std::exception& error) {
      record(error.what());
      return nullptr;
    }
    return fibers_.back().get();
  }
  Fiber* const fiber = free_.back();
  free_.pop_back();
  return fiber;
#endif
}

/// Of the `count` threads from `first` on, lets those go on whose lane is in `lanes`; runnable_ is
/// a stack.
inline void Worker::make_runnable(unsigned first, unsigned count, unsigned lanes) {
  const bool reverse = launch_->schedule.order == Order::kReverse;
  for (unsigned i = 0; i < count; ++i) {
    const unsigned t = first + (reverse ? i : count - 1 - i);
    if ((lanes >> (t % kWarpSize) & 1u) == 0) continue;
    threads_[t].state = State::kRunnable;
    runnable_[runnable_count_++] = t;
  }
}

/// After a failure: forgets what rests on the fibers of the threads that have not exited.
inline void Worker::recover() {
  trace_abandoned();
  for (unsigned t = 0; t < count_; ++t) {
    copies_[t].clear();
    Fiber* const fiber = threads_[t].fiber;
    if (fiber == nullptr || threads_[t].state == State::kExited) continue;
    fiber->reset();
    free_.push_back(fiber);
  }
}

}  // namespace dcls::host_cuda
