// The asynchronous copies of one thread into shared memory, as `cp.async` of the PTX manual.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

namespace dcls::host_cuda {

/// Copies happen at the wait, as late as a GPU may do them; until then what they write is NaN.
class AsyncCopies {
 public:
  void copy(void* to, const void* from, std::size_t bytes) {
    std::memset(to, 0xff, bytes);
    copies_.push_back({to, from, bytes});
  }
  void commit() { ends_.push_back(copies_.size()); }
  /// Waits until at most `pending` of the groups committed are under way.
  void wait(std::size_t pending) {
    if (ends_.size() <= pending) return;
    const std::size_t done = ends_.size() - pending;
    const std::size_t count = ends_[done - 1];
    for (std::size_t i = 0; i < count; ++i) {
      const Copy& copy = copies_[i];
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<std::ptrdiff_t>(count));
    ends_.erase(ends_.begin(), ends_.begin() + static_cast<std::ptrdiff_t>(done));
    for (std::size_t& end : ends_) end -= count;
  }
  bool empty() const { return copies_.empty(); }
  void clear() {
    copies_.clear();
    ends_.clear();
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    std::size_t bytes;
  };
  std::vector<Copy> copies_;
  std::vector<std::size_t> ends_;  ///< of each group, in copies_
};

}  // namespace dcls::host_cuda
