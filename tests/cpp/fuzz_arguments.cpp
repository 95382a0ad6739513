// Fuzzes the C++ API of the construct operator: any arguments end in a result or in
// std::invalid_argument (or, asked for a GPU, in std::runtime_error), and never touch memory
// that is not theirs. Under AddressSanitizer every buffer is exactly as large as the arguments say.
//
//   fuzz_arguments [RUNS [SEED]]   runs RUNS random inputs; tells how many of them were valid
//   fuzz_arguments --input FILE    runs one, as it was written by libFuzzer
//   clang++ -fsanitize=fuzzer,address -DDCLS_LIBFUZZER ...   is a libFuzzer target
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/numeric.hpp"
#include "dcls/construct.hpp"
#include "dcls/runtime.hpp"

using namespace dcls;

namespace {

/// Memory for problems of up to this many cells or elements; larger ones would be slow.
constexpr std::int64_t kMostValues = 1 << 12;

struct Counts {
  std::uint64_t runs = 0, results = 0, gradients = 0, refused = 0, no_gpu = 0, wild = 0;
} counts;

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "fuzz_arguments: %s\n", message.c_str());
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
      : bytes_(static_cast<std::size_t>(values) * value_bytes), data_(new unsigned char[bytes_]) {}

  /// Any bits are a number, an infinity or a NaN, and all of them are allowed. Mostly bits that
  /// make ordinary numbers: their upper byte is that of a number from 2^-15 to 2^16.
  Buffer& fill(Reader& reader, std::size_t value_bytes) {
    const std::uint8_t seed = reader.byte();
    std::minstd_rand engine(seed + 1u);
    for (std::size_t i = 0; i < bytes_; ++i) data_[i] = static_cast<unsigned char>(engine());
    if (seed % 8 != 0) {
      for (std::size_t i = value_bytes - 1; i < bytes_; i += value_bytes) {
        data_[i] = static_cast<unsigned char>((data_[i] & 0x80u) | 0x3fu);
      }
    }
    return *this;
  }

  void* data() { return data_.get(); }

 private:
  std::size_t bytes_;
  std::unique_ptr<unsigned char[]> data_;
};

bool is_positive_below(std::int64_t value, std::int64_t bound) {
  return value > 0 && value <= bound;
}

/// Whether the sizes are in range, and the buffers small enough to be made.
bool is_small(const ConstructArgs& args) {
  if (args.ndim < 1 || args.ndim > kMaxDims || args.rows < 0 || args.elements < 0) return false;
  if (args.rows > kMostValues || args.elements > kMostValues) return false;
  std::int64_t cells = 1;
  for (int d = 0; d < args.ndim; ++d) {
    if (!is_positive_below(args.size[d], kMostValues)) return false;
    cells *= args.size[d];
    if (cells > kMostValues) return false;
  }
  const std::int64_t pairs = args.rows * args.elements;
  return cells * args.rows <= kMostValues && pairs * args.ndim <= kMostValues;
}

/// What the documentation of the API refuses, written down a second time.
bool is_valid(const ConstructArgs& args, const Execution& where) {
  const auto in = [](auto value, int count) {
    return static_cast<int>(value) >= 0 && static_cast<int>(value) < count;
  };
  if (!in(args.version, 4) || !in(args.dtype, 4) || !in(where.device, 2)) return false;
  if (where.device == DeviceType::kCpu ? where.num_threads < 1 : where.device_index < 0) {
    return false;
  }
  const bool needed = args.rows > 0 && args.elements > 0;
  if (needed && (args.weight == nullptr || args.position == nullptr)) return false;
  if (args.version == Version::kV0 || args.version == Version::kV1) return args.sigma == nullptr;
  if (needed && args.sigma == nullptr) return false;
  return args.sigma_min > 0 && args.sigma_min <= std::numeric_limits<double>::max();
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

void run(const std::uint8_t* data, std::size_t size) {
  ++counts.runs;
  Reader reader(data, size);
  ConstructArgs args;
  args.version = static_cast<Version>(reader.integer(0, 3));
  args.dtype = static_cast<DType>(reader.integer(0, 3));
  args.ndim = static_cast<int>(reader.integer(1, 3));
  for (std::int64_t& length : args.size) length = reader.integer(1, 12);
  args.rows = reader.integer(0, 5);
  args.elements = reader.integer(0, 5);
  const std::uint8_t kind = reader.byte();
  args.sigma_min = kind < 16 ? numeric::bit_cast<double>(reader.bits()) : (kind - 15) / 64.0;
  Execution where;
  where.device = static_cast<DeviceType>(reader.byte() < 250 ? 0 : reader.integer(0, 1));
  // A GPU would be given these pointers, which are none of its own.
  static const bool has_cuda = build_info().cuda;
  if (has_cuda && where.device == DeviceType::kCuda) where.device = DeviceType::kCpu;
  where.device_index = static_cast<int>(reader.integer(0, 1));
  where.num_threads = static_cast<int>(reader.integer(1, 3));
  const bool on_gpu = where.device == DeviceType::kCuda;

  const bool small = is_small(args);
  const std::size_t bytes = args.dtype == DType::kFloat64   ? 8
                            : args.dtype == DType::kFloat32 ? 4
                                                            : 2;
  std::int64_t cells = 1;
  if (small) {
    for (int d = 0; d < args.ndim; ++d) cells *= args.size[d];
  }
  // What is not small gets no memory: nothing of it may be read or written.
  const std::int64_t pairs = small ? args.rows * args.elements : 0;
  const std::int64_t ndim = small ? args.ndim : 0;
  const std::int64_t grid = small ? args.rows * cells : 0;
  Buffer weight(pairs, bytes), position(ndim * pairs, bytes), sigma(ndim * pairs, bytes);
  Buffer kernel(grid, bytes), grad_kernel(grid, bytes);
  Buffer grad_weight(pairs, bytes), grad_position(ndim * pairs, bytes),
      grad_sigma(ndim * pairs, bytes);
  const bool has_sigma = args.version == Version::kMax || args.version == Version::kGauss;
  const std::uint8_t nulls = reader.byte();  // one in 16 of each
  if (nulls % 16 != 1) args.weight = weight.fill(reader, bytes).data();
  if (nulls % 16 != 2) args.position = position.fill(reader, bytes).data();
  if (has_sigma != (nulls % 16 == 3)) args.sigma = sigma.fill(reader, bytes).data();

  bool valid = small && is_valid(args, where);
  if (!small) {
    // Wild sizes, or valid ones for which there is no memory here: with null pointers they must be
    // refused, unless there is nothing to compute.
    args.weight = args.position = args.sigma = nullptr;
    const bool done = outcome(where, [&] { construct(args, nullptr, where); });
    if (done && args.rows != 0) stop("null pointers were taken");
    ++counts.wild;
    return;
  }

  void* const target = nulls % 16 == 4 ? nullptr : kernel.data();
  const bool result = outcome(where, [&] { construct(args, target, where); });
  const bool expected = valid && (args.rows == 0 || target != nullptr);
  if (!on_gpu && result != expected) {
    stop(result ? "arguments that are invalid were taken"
                : "arguments that are valid were refused");
  }
  if (result) ++counts.results;

  // Its weight may be null, nothing else.
  ConstructArgs unweighted = args;
  unweighted.weight = nullptr;
  Buffer support(grid, 1);
  auto* const marks = target == nullptr ? nullptr : static_cast<std::uint8_t*>(support.data());
  const bool marked = outcome(where, [&] { construct_support(unweighted, marks, where); });
  const bool weight_was_missing = args.weight == nullptr;
  if (!on_gpu && !weight_was_missing && marked != expected) {
    stop(marked ? "a support for arguments that are invalid" : "a support that is valid, refused");
  }

  ConstructGrads grads;
  const std::uint8_t asked = reader.byte();
  if (asked & 1u) grads.weight = grad_weight.data();
  if (asked & 2u) grads.position = grad_position.data();
  if (asked & 4u) grads.sigma = grad_sigma.data();
  if (!has_sigma && asked < 200) grads.sigma = nullptr;
  const void* const source = asked % 16 == 8 ? nullptr : grad_kernel.fill(reader, bytes).data();
  const bool done = outcome(where, [&] { construct_backward(args, source, grads, where); });
  const bool nothing =
      args.rows == 0 || args.elements == 0 ||
      (grads.weight == nullptr && grads.position == nullptr && grads.sigma == nullptr);
  valid = valid && (has_sigma || grads.sigma == nullptr) && (nothing || source != nullptr);
  if (!on_gpu && done != valid) {
    stop(done ? "gradients for arguments that are invalid" : "gradients that are valid, refused");
  }
  if (done) ++counts.gradients;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run(data, size);
  return 0;
}

#if !defined(DCLS_LIBFUZZER)
int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--input") == 0) {
    std::ifstream file(argv[2], std::ios::binary);
    if (!file) stop(std::string("cannot read ") + argv[2]);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
    run(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
    return 0;
  }
  const unsigned long runs = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 20000;
  const unsigned long seed = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
  for (unsigned long i = 0; i < runs; ++i) {
    std::mt19937 engine(static_cast<unsigned>(seed + i));  // input i alone: RUNS 1, SEED seed + i
    std::vector<std::uint8_t> data(engine() % 96);
    for (std::uint8_t& value : data) value = static_cast<std::uint8_t>(engine());
    run(data.data(), data.size());
  }
  std::printf(
      "%llu inputs: %llu kernels, %llu gradients, %llu calls refused, %llu without a GPU, "
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
#endif
