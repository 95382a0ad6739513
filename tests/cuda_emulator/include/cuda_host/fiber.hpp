// Fibers for the CUDA-on-host harness: a stack of its own each, switched to and from without the
// kernel of the system.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "guarded_buffer.hpp"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DCLS_HOST_CUDA_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define DCLS_HOST_CUDA_TSAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define DCLS_HOST_CUDA_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define DCLS_HOST_CUDA_TSAN 1
#endif

#if defined(DCLS_HOST_CUDA_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DCLS_HOST_CUDA_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if !defined(DCLS_HOST_CUDA_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define DCLS_HOST_CUDA_UCONTEXT 1
#endif
#if defined(DCLS_HOST_CUDA_UCONTEXT)
#include <ucontext.h>
#endif

#if defined(DCLS_HOST_CUDA_TSAN)
// For what runs on one ThreadSanitizer context and returns on another, and for what every context
// may read.
#define DCLS_HOST_CUDA_UNTRACED __attribute__((no_sanitize("thread"), noinline))
#else
#define DCLS_HOST_CUDA_UNTRACED
#endif

#if !defined(DCLS_HOST_CUDA_UCONTEXT)
// dcls_host_cuda_switch(void** save, void* load): pushes what the ABI has a callee preserve, stores
// the stack pointer to *save, takes `load` as the stack pointer and pops the same. The
// floating-point modes (mxcsr, fpcr) stay those of the OS thread. In a COMDAT group, so that any
// number of translation units may include this.
extern "C" void dcls_host_cuda_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
  .pushsection .text.dcls_host_cuda_switch,"axG",@progbits,dcls_host_cuda_switch,comdat
  .weak dcls_host_cuda_switch
  .hidden dcls_host_cuda_switch
  .type dcls_host_cuda_switch,@function
  .p2align 4
dcls_host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size dcls_host_cuda_switch, .-dcls_host_cuda_switch
  .popsection
)");
#else
asm(R"(
  .pushsection .text.dcls_host_cuda_switch,"axG",@progbits,dcls_host_cuda_switch,comdat
  .weak dcls_host_cuda_switch
  .hidden dcls_host_cuda_switch
  .type dcls_host_cuda_switch,@function
  .p2align 4
dcls_host_cuda_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size dcls_host_cuda_switch, .-dcls_host_cuda_switch
  .popsection
)");
#endif
#endif

namespace dcls::host_cuda {

/// A stack and the point at which its execution rests; without a stack, the OS thread's own
/// execution.
class Fiber {
 public:
  static constexpr std::size_t kStackBytes = 128 * 1024;
  using Entry = void (*)();  // never returns

  Fiber() = default;
  explicit Fiber(Entry entry)
      : entry_(entry),
        stack_(std::make_unique<GuardedMapping>(
            kStackBytes, "stack of a CUDA thread: recursion or local arrays too large for it")) {
    bottom_ = stack_->begin();
    reset();
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { destroy_context(); }

  /// Drops whatever rests on the stack, with no destructor run, and goes back to the entry.
  void reset() {
#if defined(DCLS_HOST_CUDA_ASAN)
    ASAN_UNPOISON_MEMORY_REGION(bottom_, kStackBytes);
    fake_stack_ = nullptr;
#endif
    destroy_context();
#if defined(DCLS_HOST_CUDA_TSAN)
    tsan_ = __tsan_create_fiber(0);
#endif
#if defined(DCLS_HOST_CUDA_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_->begin();
    context_.uc_stack.ss_size = kStackBytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry_, 0);
#else
    auto* const top = reinterpret_cast<std::uintptr_t*>(stack_->end());
#if defined(__x86_64__)
    // Six saved registers, the entry as return address, and a null one, on which unwinders stop.
    // The entry then starts with its stack pointer 8 below a multiple of 16, as after a call.
    stack_pointer_ = top - 8;
    for (int i = 1; i <= 8; ++i) top[-i] = 0;
    top[-2] = reinterpret_cast<std::uintptr_t>(entry_);
#else
    stack_pointer_ = top - 20;
    for (int i = 1; i <= 20; ++i) top[-i] = 0;
    top[-9] = reinterpret_cast<std::uintptr_t>(entry_);  // x30
#endif
#endif
  }

  /// Leaves `from`, whose execution this is, and goes on with `to`.
  DCLS_HOST_CUDA_UNTRACED static void switch_to(Fiber& from, Fiber& to) {
#if defined(DCLS_HOST_CUDA_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
    to.left_ = &from;
#endif
#if defined(DCLS_HOST_CUDA_UCONTEXT)
    swapcontext(&from.context_, &to.context_);
#else
    dcls_host_cuda_switch(&from.stack_pointer_, to.stack_pointer_);
#endif
    from.arrived();
  }

  /// To be called first by an entry; switch_to does it for a fiber that goes on.
  void arrived() {
#if defined(DCLS_HOST_CUDA_ASAN)
    // The OS thread's stack bounds become known when it is left for the first time.
    __sanitizer_finish_switch_fiber(fake_stack_, &left_->bottom_, &left_->size_);
#endif
  }

#if defined(DCLS_HOST_CUDA_TSAN)
  void* tsan() const { return tsan_; }
#endif

 private:
  void destroy_context() {
#if defined(DCLS_HOST_CUDA_TSAN)
    if (tsan_ != nullptr) __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
#endif
  }

#if defined(DCLS_HOST_CUDA_ASAN)
  void* fake_stack_ = nullptr;
  Fiber* left_ = nullptr;  // whose execution ended when this one last began or went on
  std::size_t size_ = kStackBytes;
#endif
#if defined(DCLS_HOST_CUDA_TSAN)
  void* tsan_ = nullptr;
#endif
#if defined(DCLS_HOST_CUDA_UCONTEXT)
  ucontext_t context_{};
#else
  void* stack_pointer_ = nullptr;
#endif
  Entry entry_ = nullptr;
  std::unique_ptr<GuardedMapping> stack_;
  const void* bottom_ = nullptr;
};

}  // namespace dcls::host_cuda
