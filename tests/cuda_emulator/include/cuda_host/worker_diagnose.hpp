// Worker: how faults are found and told.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "worker.hpp"

namespace dcls::host_cuda {

/// The first failure of a block is the one that is told.
inline void Worker::record(const std::string& what) {
  if (failed_) return;
  failed_ = true;
  failure_ = "block " + to_string(block_index_) + ": " + what;
}

inline void Worker::record(unsigned thread, const std::string& what) {
  record("thread " + to_string(threads_[thread].index) + ": " + what);
}

DCLS_HOST_CUDA_UNTRACED inline void Worker::fail(std::string what) {
  leave_kernel();
  end_thread_trace();
  end_block_trace();
  record(current_, what);
  std::string().swap(what);  // the destructor never runs
  go_on();
  __builtin_unreachable();  // go_on() left for run_block, and recover() drops this execution
}

/// Only notes the address: the signal handler that calls it is no place to compose a message.
DCLS_HOST_CUDA_UNTRACED inline void Worker::fault(const void* address) {
  leave_kernel();
  fault_address_ = address;
  faulted_ = failed_ = true;
  go_on();
}

inline void Worker::record_fault() {
  faulted_ = failed_ = false;
  record(current_, "invalid access, " + GuardedMapping::describe(fault_address_));
#if defined(DCLS_HOST_CUDA_ASAN)
  // The handler's frames were left without a return, so their redzones are still marked.
  stack_t stack{};
  sigaltstack(nullptr, &stack);
  if (stack.ss_sp != nullptr) ASAN_UNPOISON_MEMORY_REGION(stack.ss_sp, stack.ss_size);
#endif
}

/// Where the threads are, those in the same place taken together.
inline std::string Worker::describe_threads() const {
  static constexpr const char* kNames[] = {
      "__syncthreads",   "__syncwarp",    "__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
      "__shfl_xor_sync", "__ballot_sync", "__any_sync",  "__all_sync",     "a matrix instruction"};
  std::vector<std::pair<std::string, std::pair<unsigned, uint3>>> places;  // place, count, first
  for (unsigned t = 0; t < count_; ++t) {
    const Thread& thread = threads_[t];
    const Request& request = thread.request;
    std::string place = "can run";
    if (thread.state == State::kExited) place = "exited";
    if (thread.state == State::kWaiting) {
      char mask[32] = "";
      if (request.op != Op::kSyncThreads) {
        std::snprintf(mask, sizeof mask, "(mask 0x%08x)", request.mask);
      }
      place = std::string("in ") + kNames[static_cast<int>(request.op)] + mask + " at " +
              request.site.file + ":" + std::to_string(request.site.line);
    }
    std::size_t i = 0;
    while (i < places.size() && places[i].first != place) ++i;
    if (i == places.size()) places.push_back({place, {0, thread.index}});
    ++places[i].second.first;
  }
  std::string text;
  for (const auto& [place, threads] : places) {
    if (!text.empty()) text += "; ";
    text += std::to_string(threads.first) + " of " + std::to_string(count_) + " threads, from " +
            to_string(threads.second) + " on, " + place;
  }
  return text;
}

// ---- dynamic shared memory

inline void Worker::poison_shared() {
  unsigned char* const front = shared_begin_ - kFrontCanary;
  const auto bytes = static_cast<std::size_t>(shared_.end() - front);
#if defined(DCLS_HOST_CUDA_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(front, bytes);
#endif
  std::memset(front, kPoison, bytes);
#if defined(DCLS_HOST_CUDA_ASAN)
  unsigned char* const end = shared_begin_ + launch_->shared_bytes;
  ASAN_POISON_MEMORY_REGION(front, kFrontCanary);
  ASAN_POISON_MEMORY_REGION(end, static_cast<std::size_t>(shared_.end() - end));
#endif
}

inline void Worker::check_shared() {
  unsigned char* const end = shared_begin_ + launch_->shared_bytes;
#if defined(DCLS_HOST_CUDA_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(shared_begin_ - kFrontCanary, kFrontCanary);
  ASAN_UNPOISON_MEMORY_REGION(end, static_cast<std::size_t>(shared_.end() - end));
#endif
  for (const unsigned char* byte = shared_begin_ - kFrontCanary; byte != shared_.end(); ++byte) {
    if (byte == shared_begin_) byte = end;
    if (byte == shared_.end()) break;
    if (*byte != kPoison) return record("a thread wrote " + GuardedMapping::describe(byte));
  }
}

// ---- ThreadSanitizer

#if defined(DCLS_HOST_CUDA_TSAN)
DCLS_HOST_CUDA_UNTRACED inline void Worker::enter_kernel() {
  __tsan_switch_to_fiber(running_->tsan(), __tsan_switch_to_fiber_no_sync);
}
DCLS_HOST_CUDA_UNTRACED inline void Worker::leave_kernel() {
  __tsan_switch_to_fiber(os_context_, __tsan_switch_to_fiber_no_sync);
}
DCLS_HOST_CUDA_UNTRACED inline void Worker::begin_thread_trace() {
  __tsan_release(&block_begin_);
  enter_kernel();
  __tsan_acquire(&block_begin_);
  leave_kernel();
}
DCLS_HOST_CUDA_UNTRACED inline void Worker::end_thread_trace() {
  enter_kernel();
  __tsan_release(&block_end_);
  leave_kernel();
}
/// The next block on this OS thread uses the same stacks and static shared memory, so it comes
/// after this one.
inline void Worker::end_block_trace() { __tsan_acquire(&block_end_); }

/// After a failure: the threads that will never end come before the next block too.
DCLS_HOST_CUDA_UNTRACED inline void Worker::trace_abandoned() {
  for (unsigned t = 0; t < count_; ++t) {
    if (threads_[t].fiber == nullptr || threads_[t].state == State::kExited) continue;
    __tsan_switch_to_fiber(threads_[t].fiber->tsan(), __tsan_switch_to_fiber_no_sync);
    __tsan_release(&block_end_);
    leave_kernel();
  }
}

/// Orders all that the given threads did before with all that they will do.
DCLS_HOST_CUDA_UNTRACED inline void Worker::trace_rendezvous(unsigned first, unsigned count,
                                                             unsigned lanes) {
  // From the heap, because freeing it makes the sanitizer forget it; one kept would order too much.
  // No unique_ptr: its constructor is traced, on the stack of a fiber, as of the OS thread.
  char* const meeting = new char;
  for (const bool arriving : {true, false}) {
    for (unsigned t = first; t < first + count; ++t) {
      if ((lanes >> (t % kWarpSize) & 1u) == 0) continue;
      __tsan_switch_to_fiber(threads_[t].fiber->tsan(), __tsan_switch_to_fiber_no_sync);
      if (arriving) {
        __tsan_release(meeting);
      } else {
        __tsan_acquire(meeting);
      }
      leave_kernel();
    }
  }
  delete meeting;
}
#else
inline void Worker::enter_kernel() {}
inline void Worker::leave_kernel() {}
inline void Worker::begin_thread_trace() {}
inline void Worker::end_thread_trace() {}
inline void Worker::end_block_trace() {}
inline void Worker::trace_abandoned() {}
inline void Worker::trace_rendezvous(unsigned, unsigned, unsigned) {}
#endif

}  // namespace dcls::host_cuda
