// For tests that run a kernel in every order of its blocks and threads.
#pragma once

#include "check.hpp"
#include "launch.hpp"

namespace dcls::host_cuda {

/// Calls body(options) with the options of each of all_schedules(); failed checks name the
/// schedule.
template <class Body>
void in_all_schedules(const Body& body, LaunchOptions options = {}) {
  for (const Schedule& schedule : all_schedules()) {
    const check::Case here("DCLS_HOST_CUDA_ORDER=", to_string(schedule));
    options.schedule = schedule;
    body(static_cast<const LaunchOptions&>(options));
  }
}

}  // namespace dcls::host_cuda
