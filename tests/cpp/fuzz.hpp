// What the fuzz targets of the C++ API share. Each of them holds that any arguments end in a result
// or in std::invalid_argument (or, asked for a GPU, in std::runtime_error), that what the
// documentation allows is taken and the rest refused, and that no memory is touched but the
// buffers, which are exactly as large as the arguments say: AddressSanitizer watches that.
//
//   fuzz_NAME [RUNS [SEED]]   runs RUNS random inputs; tells how many of them were valid
//   fuzz_NAME --seconds N [SEED]  the same for a time; a new seed unless given, which is printed
//   fuzz_NAME --input FILE    runs one, as it was written by libFuzzer
//   clang++ -fsanitize=fuzzer,address -DDCLS_LIBFUZZER ...   is a libFuzzer target
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/dispatch.hpp"
#include "dcls/runtime.hpp"
#include "fuzz_again.hpp"

namespace dcls::fuzz {

/// Memory for tensors of up to this many values; larger ones would be slow.
inline constexpr std::int64_t kMostValues = 1 << 12;

struct Counts {
  std::uint64_t runs = 0, results = 0, gradients = 0, refused = 0, no_gpu = 0, wild = 0;
};
inline Counts counts;

[[noreturn]] inline void stop(const std::string& message) {
  std::fprintf(stderr, "fuzz: %s\n", message.c_str());
  print_again();
  std::abort();
}

/// Reads values off the input; behind its end all bytes are 0.
class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t byte() {
    if (at_ == size_) return 0;
    return data_[at_++];
  }

  std::uint64_t bits() {
    std::uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return value;
  }

  /// Mostly from `low` to `high`; now and then beside it, extreme, or any bits.
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    static constexpr std::int64_t kExtremes[] = {0,
                                                 -1,
                                                 std::int64_t{1} << 24,
                                                 (std::int64_t{1} << 24) + 1,
                                                 (std::int64_t{1} << 31) - 1,
                                                 std::int64_t{1} << 31,
                                                 std::int64_t{1} << 40,
                                                 std::numeric_limits<std::int64_t>::max(),
                                                 std::numeric_limits<std::int64_t>::min()};
    const int kind = byte();
    if (kind >= 16) return low + byte() % (high - low + 1);
    if (kind >= 10) return kind % 2 == 0 ? low - 1 : high + 1;
    if (kind >= 2) return kExtremes[byte() % std::size(kExtremes)];
    return static_cast<std::int64_t>(bits());
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  std::size_t at_ = 0;
};

/// Memory of exactly the size that is asked for, at the end of an allocation.
class Buffer {
 public:
  Buffer(std::int64_t values, std::size_t value_bytes)
      : value_bytes_(value_bytes),
        bytes_(static_cast<std::size_t>(values) * value_bytes),
        data_(new unsigned char[bytes_]) {
    std::memset(data_.get(), kPoison, bytes_);
  }

  /// Any bits are a number, an infinity or a NaN, and all of them are allowed. Mostly bits that
  /// make ordinary numbers: their upper byte is that of a number from 2^-15 to 2^16.
  Buffer& fill(Reader& reader) {
    const std::uint8_t seed = reader.byte();
    std::minstd_rand engine(seed + 1u);
    for (std::size_t i = 0; i < bytes_; ++i) data_[i] = static_cast<unsigned char>(engine());
    if (seed % 8 != 0) {
      for (std::size_t i = value_bytes_ - 1; i < bytes_; i += value_bytes_) {
        data_[i] = static_cast<unsigned char>((data_[i] & 0x80u) | 0x3fu);
      }
    }
    return *this;
  }

  Buffer& zero() {
    std::memset(data_.get(), 0, bytes_);
    return *this;
  }

  /// Whether no value is as the constructor left it. Values of two bytes can be that by chance.
  bool written() const {
    if (value_bytes_ < 4) return true;
    for (std::size_t i = 0; i < bytes_; i += value_bytes_) {
      std::size_t same = 0;
      while (same < value_bytes_ && data_[i + same] == kPoison) ++same;
      if (same == value_bytes_) return false;
    }
    return true;
  }

  void* data() { return data_.get(); }

 private:
  static constexpr unsigned char kPoison = 0xa5;
  std::size_t value_bytes_, bytes_;
  std::unique_ptr<unsigned char[]> data_;
};

inline bool between(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value >= low && value <= high;
}

inline bool is_dtype(DType dtype) { return between(static_cast<int>(dtype), 0, kDTypeCount - 1); }
inline std::size_t value_bytes(DType dtype) { return is_dtype(dtype) ? storage_bytes(dtype) : 2; }
inline bool is_version(Version version) {
  return between(static_cast<int>(version), 0, kVersionCount - 1);
}

/// The product of numbers, or -1 if it, or one of them, is not from 0 to kMostValues.
inline std::int64_t small_product(std::initializer_list<std::int64_t> values) {
  std::int64_t product = 1;
  for (const std::int64_t value : values) {
    if (!between(value, 0, kMostValues) || !between(product * value, 0, kMostValues)) return -1;
    product *= value;
  }
  return product;
}

/// The same of the sizes of `ndim` axes.
inline std::int64_t small_points(const std::int64_t (&size)[kMaxDims], int ndim) {
  std::int64_t product = 1;
  for (int d = 0; d < ndim && product >= 0; ++d) product = small_product({product, size[d]});
  return product;
}

/// Where to run. A GPU would be given host pointers, so it is only asked for where there is none.
inline Execution read_execution(Reader& reader) {
  Execution where;
  where.device = static_cast<DeviceType>(reader.byte() < 250 ? 0 : reader.integer(0, 1));
  static const bool has_cuda = build_info().cuda;
  if (has_cuda && where.device == DeviceType::kCuda) where.device = DeviceType::kCpu;
  where.device_index = static_cast<int>(reader.integer(0, 1));
  where.num_threads = static_cast<int>(reader.integer(1, 3));
  return where;
}

/// What the documentation of Execution refuses, written down a second time.
inline bool is_valid(const Execution& where) {
  if (!between(static_cast<int>(where.device), 0, 1)) return false;
  return where.device == DeviceType::kCpu ? where.num_threads >= 1 : where.device_index >= 0;
}

/// Runs one call; returns whether it gave a result.
template <typename Call>
bool outcome(const Execution& where, Call&& call) {
  try {
    call();
    return true;
  } catch (const std::invalid_argument&) {
    ++counts.refused;
  } catch (const std::runtime_error& error) {
    if (where.device != DeviceType::kCuda) stop(std::string("unexpected: ") + error.what());
    ++counts.no_gpu;
  }
  return false;
}

/// The same, where it is known whether the call should. On a GPU it gives none.
template <typename Call>
bool check_outcome(const char* name, bool expected, const Execution& where, Call&& call) {
  const bool got = outcome(where, call);
  if (where.device != DeviceType::kCuda && got != expected) {
    stop(std::string(name) + (got ? ": arguments that are invalid were taken"
                                  : ": arguments that are valid were refused"));
  }
  return got;
}

inline void check_written(const char* name, const Buffer& buffer) {
  if (!buffer.written()) stop(std::string(name) + " was not written as a whole");
}

using Target = void(const std::uint8_t* data, std::size_t size);

/// Inputs have up to `longest` bytes.
inline int main_of(Target& run, std::size_t longest, int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--input") == 0) {
    std::ifstream file(argv[2], std::ios::binary);
    if (!file) stop(std::string("cannot read ") + argv[2]);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    run(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    return 0;
  }
  on_sanitizer_death();
  const bool timed = argc > 2 && std::strcmp(argv[1], "--seconds") == 0;
  const double seconds = timed ? std::strtod(argv[2], nullptr) : 0;
  const int at = timed ? 3 : 2;
  unsigned long runs = argc > 1 && !timed ? std::strtoul(argv[1], nullptr, 10) : 20000;
  const unsigned long seed = argc > at ? std::strtoul(argv[at], nullptr, 10)
                             : timed   ? std::random_device()()
                                       : 0;
  const auto start = std::chrono::steady_clock::now();
  const auto goes_on = [&](unsigned long i) {
    if (!timed) return i < runs;
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <
           seconds;
  };
  unsigned long i = 0;
  for (; goes_on(i); ++i) {
    again = std::string(argv[0]) + " 1 " + std::to_string(static_cast<unsigned>(seed + i));
    std::mt19937 engine(static_cast<unsigned>(seed + i));  // input i alone: RUNS 1, SEED seed + i
    std::vector<std::uint8_t> data(engine() % longest);
    for (std::uint8_t& value : data) value = static_cast<std::uint8_t>(engine());
    run(data.data(), data.size());
  }
  runs = i;
  std::printf("seed %lu: ", seed);
  std::printf(
      "%llu inputs: %llu results, %llu gradients, %llu calls refused, %llu without a GPU, "
      "%llu of wild sizes\n",
      static_cast<unsigned long long>(counts.runs), static_cast<unsigned long long>(counts.results),
      static_cast<unsigned long long>(counts.gradients),
      static_cast<unsigned long long>(counts.refused),
      static_cast<unsigned long long>(counts.no_gpu), static_cast<unsigned long long>(counts.wild));
  // A fuzzer that never gets past the checks, or never against one, tests nothing.
  const bool covers = counts.results > runs / 10 && counts.gradients > runs / 10 &&
                      counts.refused > runs / 10 && counts.wild > 0;
  if (runs >= 1000 && !covers) stop("the inputs are of one kind");
  return 0;
}

}  // namespace dcls::fuzz

#if defined(DCLS_LIBFUZZER)
#define DCLS_FUZZ_MAIN(run, longest)                                                  \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
    run(data, size);                                                                  \
    return 0;                                                                         \
  }
#else
#define DCLS_FUZZ_MAIN(run, longest) \
  int main(int argc, char** argv) { return dcls::fuzz::main_of(run, longest, argc, argv); }
#endif
