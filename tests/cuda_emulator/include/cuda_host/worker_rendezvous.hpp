// Worker: barriers and warp collectives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "worker.hpp"

namespace dcls::host_cuda {

DCLS_HOST_CUDA_UNTRACED inline std::uint64_t Worker::rendezvous(const Request& request) {
  leave_kernel();
  Thread& me = threads_[current_];
  me.request = request;
  me.state = State::kWaiting;
  if (request.op == Op::kSyncThreads) {
    arrive_at_barrier();
  } else {
    arrive_in_warp();
  }
  go_on();
  enter_kernel();
  return me.result;
}

DCLS_HOST_CUDA_UNTRACED inline void Worker::exchange(
    const Request& request, std::uint32_t (&all)[kWarpSize][kExchangeWords]) {
  rendezvous(request);
  // Not to become a memcpy, which ThreadSanitizer would see.
  const volatile std::uint32_t* const from = &warps_[current_ / kWarpSize].exchanged[0][0];
  for (unsigned i = 0; i < kWarpSize * kExchangeWords; ++i) {
    all[i / kExchangeWords][i % kExchangeWords] = from[i];
  }
}

inline void Worker::arrive_at_barrier() {
  const Site& site = threads_[current_].request.site;
  if (at_barrier_ == 0) barrier_site_ = site;
  if (!(barrier_site_ == site)) {
    record(current_, "divergent barrier: " + describe_threads());
    return;
  }
  if (++at_barrier_ != count_) return;
  at_barrier_ = 0;
  trace_rendezvous(0, count_, ~0u);
  make_runnable(0, count_, ~0u);
}

inline void Worker::arrive_in_warp() {
  const Request& request = threads_[current_].request;
  const unsigned lane = current_ % kWarpSize;
  if ((request.mask >> lane & 1u) == 0) {
    record(current_, "its own lane " + std::to_string(lane) +
                         " is not in the mask of: " + describe_threads());
    return;
  }
  if (request.width == 0 || request.width > kWarpSize || (request.width & (request.width - 1))) {
    record(current_,
           "shuffle width " + std::to_string(request.width) + ", must be a power of two up to 32");
    return;
  }
  const bool relative =
      request.op == Op::kShflUp || request.op == Op::kShflDown || request.op == Op::kShflXor;
  if (relative && request.argument >= kWarpSize) {
    record(current_, "shuffle delta or lane mask " + std::to_string(request.argument) +
                         ", of which CUDA sees the low five bits only");
    return;
  }
  warps_[current_ / kWarpSize].waiting |= 1u << lane;
  complete_if_all_arrived(current_ / kWarpSize, request.mask);
}

/// Completes the collective of the lanes in `mask` once all of them that live are in it. Lanes that
/// have exited, or that a partial last warp never had, do not count (CUDA: "all non-exited threads
/// named in mask").
inline void Worker::complete_if_all_arrived(unsigned warp, unsigned mask) {
  const unsigned group = mask & warps_[warp].live;
  if (group == 0 || (group & ~warps_[warp].waiting) != 0) return;
  const unsigned base = warp * kWarpSize;
  const unsigned size = std::min(kWarpSize, count_ - base);
  const Request* first = nullptr;
  for (unsigned lane = 0; lane < size; ++lane) {
    if ((group >> lane & 1u) == 0) continue;
    const Request& request = threads_[base + lane].request;
    if (first == nullptr) first = &request;
    if (request.mask != mask || request.op != first->op ||
        request.value_bytes != first->value_bytes) {
      return;  // in another collective: if nothing resolves that, it shows as a deadlock
    }
  }
  for (unsigned lane = 0; lane < size; ++lane) {
    if ((group >> lane & 1u) != 0) {
      threads_[base + lane].result = evaluate(base + lane, group);
    }
  }
  if (first->op == Op::kExchange) {
    if (group != ~0u) return record(current_, "a matrix instruction of a warp that is not whole");
    for (unsigned lane = 0; lane < size; ++lane) {
      std::copy_n(threads_[base + lane].request.words, kExchangeWords,
                  warps_[warp].exchanged[lane]);
    }
  }
  warps_[warp].waiting &= ~group;
  // Shuffles and votes order no memory accesses (programming guide), only __syncwarp does.
  if (first->op == Op::kSyncWarp) trace_rendezvous(base, size, group);
  make_runnable(base, size, group);
}

/// The result of one thread of a collective. Lane arithmetic: "Warp Shuffle Functions" of the CUDA
/// programming guide and `shfl.sync` of the PTX manual (a source outside the segment of `width`
/// lanes gives the thread its own value).
inline std::uint64_t Worker::evaluate(unsigned thread, unsigned group) {
  const Request& request = threads_[thread].request;
  const unsigned base = thread / kWarpSize * kWarpSize;
  const unsigned lane = thread % kWarpSize;
  const unsigned segment = lane & ~(request.width - 1);
  const unsigned last = segment + request.width - 1;
  unsigned source = lane;
  switch (request.op) {
    case Op::kSyncThreads:
    case Op::kSyncWarp:
    case Op::kExchange: return 0;
    case Op::kBallot:
    case Op::kAny:
    case Op::kAll: {
      unsigned ballot = 0;
      for (unsigned i = 0; i < kWarpSize; ++i) {
        if ((group >> i & 1u) != 0 && threads_[base + i].request.value != 0) ballot |= 1u << i;
      }
      if (request.op == Op::kBallot) return ballot;
      return request.op == Op::kAny ? ballot != 0 : ballot == group;
    }
    case Op::kShfl: source = segment | (request.argument & (request.width - 1)); break;
    case Op::kShflUp:
      if (lane >= segment + request.argument) source = lane - request.argument;
      break;
    case Op::kShflDown:
      if (lane + request.argument <= last) source = lane + request.argument;
      break;
    case Op::kShflXor:
      if ((lane ^ request.argument) <= last) source = lane ^ request.argument;
      break;
  }
  if ((group >> source & 1u) == 0) {
    record(thread, "shuffles from lane " + std::to_string(source) +
                       ", which has exited or is not in the mask: " + describe_threads());
    return 0;
  }
  return threads_[base + source].request.value;
}

/// The current thread has exited: its fiber is free, and a collective may have waited for no one
/// else.
inline void Worker::leave_block() {
  threads_[current_].state = State::kExited;
  ++exited_;
  free_.push_back(running_);  // so that the next thread to begin is on the same stack
  const unsigned warp = current_ / kWarpSize;
  warps_[warp].live &= ~(1u << current_ % kWarpSize);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((warps_[warp].waiting >> lane & 1u) != 0) {
      complete_if_all_arrived(warp, threads_[warp * kWarpSize + lane].request.mask);
    }
  }
}

}  // namespace dcls::host_cuda
