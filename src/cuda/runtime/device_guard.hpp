#pragma once

namespace dcls::cuda {

/// Makes a device current, and the former one again at the end. A former device that has no context
/// gets none: cudaSetDevice would make one there.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_;
  int former_ = 0;
  enum class Change { kNone, kSet, kPushed } change_ = Change::kNone;
};

}  // namespace dcls::cuda
