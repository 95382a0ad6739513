// What gcc 11's and newer headers take from newer libraries than manylinux_2_28 promises. Linked
// into each library by local_wheel.sh; the container's compiler brings the like of it.
#include <exception>
#include <new>

extern "C" {
char __libc_single_threaded = 0;  // glibc 2.32: 0 is "perhaps not"

// The copy constructor and the destructor of exception_ptr, which gcc 4.4's library has and new
// headers inline.
void copy(void* self, const void* other) noexcept
    __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void destroy(void* self) noexcept __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
}

// Of this library alone: namespace std has default visibility otherwise.
__asm__(
    ".hidden _ZSt28__throw_bad_array_new_lengthv\n"
    ".hidden _ZNSt15__exception_ptr13exception_ptr9_M_addrefEv\n"
    ".hidden _ZNSt15__exception_ptr13exception_ptr10_M_releaseEv\n");

namespace std {
void __throw_bad_array_new_length() { throw bad_array_new_length(); }

namespace __exception_ptr {
void exception_ptr::_M_addref() noexcept {
  void* kept;  // never destroyed
  copy(&kept, this);
}
void exception_ptr::_M_release() noexcept {
  destroy(this);
  _M_exception_object = nullptr;
}
}  // namespace __exception_ptr
}  // namespace std
