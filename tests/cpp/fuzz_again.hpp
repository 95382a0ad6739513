// The command that runs the present case again, told wherever the process ends early.
#pragma once

#include <cstdio>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace dcls::fuzz {

inline std::string again;

inline void print_again() { std::fprintf(stderr, "  %s\n", again.c_str()); }

/// Has a sanitizer print it after its report.
inline void on_sanitizer_death() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(print_again);
#endif
}

}  // namespace dcls::fuzz
