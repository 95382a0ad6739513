// Memory between inaccessible pages, so that an access one element behind the end faults, with or
// without a sanitizer.
//
// GuardedMapping is the raw form (the harness keeps its stacks and dynamic shared memory in it);
// GuardedBuffer<T> is the tensor that a test hands to a kernel. All mappings are on record, so that
// a fault can be described by name.
#pragma once

#if !defined(__linux__)
#error "the CUDA-on-host harness needs Linux (mmap, mprotect, sigaltstack)"
#endif

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace dcls::host_cuda {

/// The byte of memory that nobody has written: NaN in float, double, half and bfloat16, -1 in the
/// integers.
inline constexpr unsigned char kPoison = 0xFF;

/// Pages of zeros with inaccessible memory before and behind them.
class GuardedMapping {
 public:
  /// So much on each side (it costs addresses, not memory), so that an index which is off by a row
  /// of a tensor is still told as what it is.
  static constexpr std::size_t kGuardBytes = 1 << 20;

  /// Maps at least `bytes` bytes. Pages that are never touched take no memory.
  /// @throws std::runtime_error if the system refuses.
  GuardedMapping(std::size_t bytes, std::string name) : name_(std::move(name)) {
    const std::size_t page = page_size();
    usable_ = (bytes + page - 1) / page * page;
    void* const map = mmap(nullptr, usable_ + 2 * kGuardBytes, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
      throw std::runtime_error("cannot map " + std::to_string(bytes) + " bytes for " + name_);
    }
    begin_ = static_cast<unsigned char*>(map) + kGuardBytes;
    if (usable_ != 0 && mprotect(begin_, usable_, PROT_READ | PROT_WRITE) != 0) {
      munmap(map, usable_ + 2 * kGuardBytes);
      throw std::runtime_error("cannot guard " + std::to_string(bytes) + " bytes for " + name_);
    }
    set_payload(begin_, usable_);
  }
  GuardedMapping(const GuardedMapping&) = delete;
  GuardedMapping& operator=(const GuardedMapping&) = delete;
  ~GuardedMapping() {
    {
      const std::lock_guard<std::mutex> lock(record().mutex);
      record().mappings.erase(begin_);
    }
    munmap(begin_ - kGuardBytes, usable_ + 2 * kGuardBytes);
  }

  unsigned char* begin() const { return begin_; }
  unsigned char* end() const { return begin_ + usable_; }
  const std::string& name() const { return name_; }

  /// The part that messages take for the object itself; the whole mapping at first.
  void set_payload(unsigned char* payload, std::size_t bytes) {
    payload_ = payload;
    payload_bytes_ = bytes;
    const std::lock_guard<std::mutex> lock(record().mutex);
    record().mappings[begin_] = this;
  }

  /// Says in words which mapping an address belongs to and where in it; for the message of a fault.
  static std::string describe(const void* address) {
    char hex[32];
    std::snprintf(hex, sizeof hex, "address %p", address);
    const auto* const at = static_cast<const unsigned char*>(address);
    const std::lock_guard<std::mutex> lock(record().mutex);
    for (const auto& [begin, map] : record().mappings) {
      if (at < begin - kGuardBytes || at >= map->end() + kGuardBytes) continue;
      const std::string object =
          "'" + map->name_ + "' (" + std::to_string(map->payload_bytes_) + " bytes)";
      if (at < map->payload_) {
        return std::to_string(map->payload_ - at) + " bytes before the begin of " + object;
      }
      if (at >= map->payload_ + map->payload_bytes_) {
        return std::to_string(at - (map->payload_ + map->payload_bytes_)) +
               " bytes behind the end of " + object;
      }
      return "byte " + std::to_string(at - map->payload_) + " of " + object;
    }
    return std::string(hex) + " (in no guarded buffer)";
  }

  static std::size_t page_size() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
  }

 private:
  struct Record {
    std::mutex mutex;
    std::map<const unsigned char*, const GuardedMapping*> mappings;
  };
  static Record& record() {
    static Record* const instance = new Record;  // never destroyed: static buffers may outlive it
    return *instance;
  }

  std::string name_;
  unsigned char* begin_ = nullptr;
  std::size_t usable_ = 0;
  const unsigned char* payload_ = nullptr;
  std::size_t payload_bytes_ = 0;
};

/// A write into the bytes beside a buffer, found after the fact.
struct GuardError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Which end of a GuardedBuffer touches its guard page. The other end has up to a page of canary
/// bytes: reads there give NaN, writes are found by check() and by the destructor.
enum class Guard { kEnd, kBegin };

/// Exactly `size` elements of T between guard pages.
///
/// With Guard::kEnd (the default) an access one element behind the end faults, and data() is
/// aligned to T only; with Guard::kBegin an access one element before the begin faults and data()
/// is aligned to a page, as the allocators of CUDA and PyTorch align it to 256 and 64 bytes: use it
/// to reach the vectorised path of a kernel. A fault inside a kernel becomes a KernelError of the
/// launch; elsewhere it is described on stderr and kills the test.
template <class T>
class GuardedBuffer {
  static_assert(std::is_trivially_copyable_v<T>,
                "a kernel can only see trivially copyable elements");

 public:
  /// Every byte is kPoison, so that an element which a kernel forgets to write is a NaN.
  explicit GuardedBuffer(std::size_t size, std::string name = "buffer", Guard guard = Guard::kEnd)
      : GuardedBuffer(size, std::move(name), guard, /*fill=*/true) {}

  explicit GuardedBuffer(const std::vector<T>& values, std::string name = "buffer",
                         Guard guard = Guard::kEnd)
      : GuardedBuffer(values.size(), std::move(name), guard, /*fill=*/false) {
    if (!values.empty()) std::memcpy(data_, values.data(), bytes());
  }

  /// Zeros, of which only the touched pages take memory: for tensors addressed past 2^31 elements.
  static GuardedBuffer sparse(std::size_t size, std::string name = "buffer",
                              Guard guard = Guard::kEnd) {
    return GuardedBuffer(size, std::move(name), guard, /*fill=*/false);
  }

  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  /// Ends the program if the canary bytes changed and check() has not said so.
  ~GuardedBuffer() {
    const std::string damage = find_damage();
    if (damage.empty() || reported_) return;
    std::fprintf(stderr, "%s\n", damage.c_str());
    if (std::uncaught_exceptions() == 0) std::abort();
  }

  /// @throws GuardError if something wrote into the canary bytes beside the data.
  void check() const {
    const std::string damage = find_damage();
    if (damage.empty()) return;
    reported_ = true;
    throw GuardError(damage);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::vector<T> to_vector() const { return std::vector<T>(begin(), end()); }

  /// For the test, not for kernels.
  /// @throws std::out_of_range
  T& operator[](std::size_t i) { return data_[checked(i)]; }
  const T& operator[](std::size_t i) const { return data_[checked(i)]; }

 private:
  GuardedBuffer(std::size_t size, std::string name, Guard guard, bool fill)
      : size_(size), map_(size * sizeof(T), std::move(name)) {
    auto* const first = guard == Guard::kEnd ? map_.end() - bytes() : map_.begin();
    data_ = reinterpret_cast<T*>(first);
    map_.set_payload(first, bytes());
    if (fill && size != 0) std::memset(first, kPoison, bytes());
    const auto [begin, end] = canary();
    if (begin != end) std::memset(begin, kPoison, static_cast<std::size_t>(end - begin));
  }

  std::pair<unsigned char*, unsigned char*> canary() const {
    auto* const first = reinterpret_cast<unsigned char*>(data_);
    if (first != map_.begin()) return {map_.begin(), first};
    return {first + bytes(), map_.end()};
  }

  std::string find_damage() const {
    const auto [begin, end] = canary();
    for (const unsigned char* byte = begin; byte != end; ++byte) {
      if (*byte != kPoison) return "something wrote " + GuardedMapping::describe(byte);
    }
    return {};
  }

  std::size_t checked(std::size_t i) const {
    if (i < size_) return i;
    throw std::out_of_range("index " + std::to_string(i) + " of '" + map_.name() + "', which has " +
                            std::to_string(size_) + " elements");
  }

  std::size_t size_;
  GuardedMapping map_;
  T* data_ = nullptr;
  mutable bool reported_ = false;
};

}  // namespace dcls::host_cuda
