// The interpreter of machine code: the kernels of sass_kernels.cu, whose results and counts are
// known by hand. nvcc and nvdisasm made sass_kernels.sass:
//
//   nvcc -arch=sm_90 -cubin sass_kernels.cu -o sass_kernels.cubin && nvdisasm sass_kernels.cubin
#include <cmath>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "check.hpp"
#include "cuda_host.hpp"
#include "cuda_sass/operations.hpp"

using namespace dcls;
using namespace dcls::cuda_sass;
using host_cuda::Guard;
using host_cuda::GuardedBuffer;

namespace {

const Program& kernels() {
  static const Program program = [] {
    std::ifstream file(DCLS_SASS_KERNELS);
    return read_program(file);
  }();
  return program;
}

template <typename... Parameters>
Counts run(const std::string& name, unsigned grid, unsigned threads, Parameters... parameters) {
  LaunchShape shape;
  shape.grid = grid;
  shape.threads = threads;
  shape.parameters = host_cuda::detail::parameter_bytes(std::tuple<Parameters...>(parameters...));
  Machine machine(kernels().at(name), shape);
  for (unsigned b = 0; b < grid; ++b) machine.run_block(b);
  return machine.counts();
}

/// Of all instructions of a name.
Count of(const std::string& kernel, const Counts& counts, const std::string& name) {
  Count sum;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (kernels().at(kernel).code[i].name == name) sum += counts[i];
  }
  return sum;
}

std::vector<float> numbers(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i * 7 % 23) - 11.0f;
  return values;
}

std::uint64_t read_bytes(const std::vector<unsigned char>& bytes, std::size_t at) {
  std::uint64_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

void put(int* to, char add, double factor) { *to = add + static_cast<int>(factor); }

}  // namespace

TEST(an_observer_sees_launches) {
  int value = 1;
  std::vector<host_cuda::ObservedLaunch> seen;
  bool runs = false;
  host_cuda::launch_observer = [&](const host_cuda::ObservedLaunch& launch) {
    seen.push_back(launch);
    return runs;
  };
  host_cuda::launch(&put, 1, 1, 16, &value, char{3}, 4.0);
  CHECK(value == 1);
  runs = true;
  host_cuda::launch(&put, 1, 1, 16, &value, char{3}, 4.0);
  CHECK(value == 7);
  host_cuda::launch_observer = nullptr;
  CHECK(seen.size() == 2);
  CHECK(seen[0].kernel == reinterpret_cast<const void*>(&put));
  CHECK(seen[0].shared_bytes == 16 && seen[0].grid.x == 1);
  // As nvcc lays them out: each is aligned to its size.
  const std::vector<unsigned char>& bytes = seen[0].parameters;
  CHECK(bytes.size() == 24 && bytes[8] == 3);
  CHECK(bits_as<int*>(read_bytes(bytes, 0)) == &value);
  CHECK(bits_as<double>(read_bytes(bytes, 16)) == 4.0);
}

TEST(a_copy) {
  const GuardedBuffer<float> from(numbers(512), "from", Guard::kBegin);
  GuardedBuffer<float> to(512, "to", Guard::kBegin);
  const Counts counts = run("copy", 2, 256, from.data(), to.data());
  CHECK(to.to_vector() == from.to_vector());
  for (const char* name : {"LDG", "STG"}) {
    const Count c = of("copy", counts, name);
    CHECK(c.issued == 16);  // warps
    CHECK(c.lanes == 512);
    CHECK(c.accesses == 16);
    CHECK(c.sectors == 64);
    CHECK(c.wavefronts == 16);
  }
}

TEST(a_product_of_matrices) {
  const GuardedBuffer<float> a(numbers(1024), "a", Guard::kBegin);
  std::vector<float> values = numbers(1024);
  for (float& v : values) v = 3.0f - v;
  const GuardedBuffer<float> b(values, "b", Guard::kBegin);
  GuardedBuffer<float> c(1024, "c", Guard::kBegin);
  const Counts counts = run("product", 1, 256, a.data(), b.data(), c.data());
  for (std::size_t i = 0; i < 32; ++i) {
    for (std::size_t j = 0; j < 32; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < 32; ++k) sum += a[i * 32 + k] * b[k * 32 + j];
      CHECK(c[i * 32 + j] == sum);
    }
  }
  // 8 warps with 4 rows each, of 32 products.
  CHECK(of("product", counts, "FFMA").issued == 1024);
  CHECK(of("product", counts, "LDS").accesses == 1024);
  CHECK(of("product", counts, "LDS").wavefronts == 1024);
  CHECK(of("product", counts, "STS").accesses == 32);
  CHECK(of("product", counts, "STS").wavefronts == 32);
  // A value of a for all lanes at a time, and the rows of b.
  CHECK(of("product", counts, "LDG").accesses == 1024 + 32);
  CHECK(of("product", counts, "LDG").sectors == 1024 + 4 * 32);
  CHECK(of("product", counts, "STG").sectors == 4 * 32);
  CHECK(of("product", counts, "BAR").issued == 8);
}

TEST(a_column_of_one_bank) {
  GuardedBuffer<float> to(32, "to", Guard::kBegin);
  const Counts counts = run("column", 1, 32, to.data());
  for (std::size_t i = 0; i < 32; ++i) CHECK(to[i] == static_cast<float>(i + 1));
  CHECK(of("column", counts, "LDS").accesses == 1);
  CHECK(of("column", counts, "LDS").wavefronts == 32);
  CHECK(of("column", counts, "STS").wavefronts == 32);
}

TEST(lanes_that_go_apart) {
  std::vector<int> times(32);
  for (std::size_t i = 0; i < 32; ++i) times[i] = static_cast<int>(i * 11 % 17);
  const GuardedBuffer<int> input(times, "times", Guard::kBegin);
  GuardedBuffer<long long> to(32, "to", Guard::kBegin);
  run("apart", 1, 32, input.data(), to.data());
  std::vector<long long> sums;
  int word = 0;
  for (int lane = 0; lane < 32; ++lane) {
    long long sum = 0;
    for (int i = 0; i < times[static_cast<std::size_t>(lane)]; ++i) sum += i * 3 + 1;
    sum = lane % 2 == 0 ? sum / (lane + 1) - 7 : sum % (lane + 2);
    sums.push_back(sum);
    word += static_cast<int>(sum);
  }
  for (std::size_t i = 0; i < 32; ++i) CHECK(to[i] == sums[i] * 1000 + word);
}

TEST(copies_arrive_when_they_are_waited_for) {
  const GuardedBuffer<float> from(numbers(256), "from", Guard::kBegin);
  GuardedBuffer<float> to(256, "to", Guard::kBegin);
  const Counts counts = run("copy_async", 1, 32, from.data(), to.data());
  CHECK(to.to_vector() == from.to_vector());
  const Count c = of("copy_async", counts, "LDGSTS");
  CHECK(c.accesses == 2 && c.sectors == 32 && c.wavefronts == 8);
  run("copy_too_early", 1, 32, from.data(), to.data());
  for (std::size_t i = 0; i < 128; ++i) CHECK(to[i] == from[i]);
  for (std::size_t i = 128; i < 256; ++i) CHECK(std::isnan(to[i]));
}

TEST(a_product_on_tensor_cores) {
  std::vector<std::uint16_t> a, b;
  for (const float v : numbers(256)) a.push_back(float_to_bfloat(v));
  for (const float v : numbers(128)) b.push_back(float_to_bfloat(5.0f - v));
  const GuardedBuffer<std::uint16_t> left(a, "a", Guard::kBegin), right(b, "b", Guard::kBegin);
  GuardedBuffer<float> c(128, "c", Guard::kBegin);
  const Counts counts = run("product_mma", 1, 32, left.data(), right.data(), c.data());
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      float sum = 0;
      for (std::size_t k = 0; k < 16; ++k) {
        sum += bfloat_to_float(a[i * 16 + k]) * bfloat_to_float(b[k * 8 + j]);
      }
      CHECK(c[i * 8 + j] == sum);
    }
  }
  CHECK(of("product_mma", counts, "HMMA").issued == 1);
  // Rows of 32 bytes: 8 of them are on 4 * 2 groups of banks. Rows of 16 bytes are not in conflict.
  CHECK(of("product_mma", counts, "LDSM").accesses == 2);
  CHECK(of("product_mma", counts, "LDSM").wavefronts == 4 * 2 + 2);
  CHECK(of("product_mma", counts, "LDSM").least == 4 + 2);
}

TEST(what_a_kernel_needs) {
  const Kernel& product = kernels().at("product");
  CHECK(product.shared == 1024 + 4096);  // the system takes 1024 bytes
  CHECK(product.registers == 14);
  CHECK(product.stack == 0);
  CHECK(product.parameter_bytes == 24);
  CHECK(product.parameters_at == 0x210);
}

TEST(wavefronts_of_shared_memory) {
  const auto wavefronts = [](int bytes, const auto& place, std::uint32_t lanes = ~0u) {
    Addresses at;
    for (std::size_t i = 0; i < kLanes; ++i) at[i] = static_cast<std::uint64_t>(place(i));
    return shared_wavefronts(at, lanes, bytes).taken;
  };
  CHECK(wavefronts(4, [](std::size_t i) { return 4 * i; }) == 1);
  CHECK(wavefronts(4, [](std::size_t) { return 64; }) == 1);  // one word for all
  CHECK(wavefronts(4, [](std::size_t i) { return 8 * i; }) == 2);
  CHECK(wavefronts(4, [](std::size_t i) { return 12 * i; }) == 1);  // odd
  CHECK(wavefronts(4, [](std::size_t i) { return 128 * i; }) == 32);
  CHECK(wavefronts(4, [](std::size_t i) { return 128 * i; }, 7u) == 3);
  CHECK(wavefronts(4, [](std::size_t i) { return 128 * i; }, 0u) == 0);
  CHECK(wavefronts(8, [](std::size_t i) { return 8 * i; }) == 2);
  CHECK(wavefronts(8, [](std::size_t i) { return 16 * i; }) == 4);
  CHECK(wavefronts(16, [](std::size_t i) { return 16 * i; }) == 4);
  CHECK(wavefronts(16, [](std::size_t i) { return 144 * i; }) == 4);  // a pitch of 9 times 16 bytes
  CHECK(wavefronts(16, [](std::size_t i) { return 128 * i; }) == 32);
  CHECK(wavefronts(2, [](std::size_t i) { return 2 * i; }) == 1);
}

TEST(sectors_of_global_memory) {
  const auto sectors = [](int bytes, const auto& place, std::uint32_t lanes = ~0u) {
    Addresses at;
    for (std::size_t i = 0; i < kLanes; ++i) at[i] = static_cast<std::uint64_t>(place(i));
    return touched(at, lanes, bytes, 32);
  };
  CHECK(sectors(4, [](std::size_t i) { return 4 * i; }) == 4);
  CHECK(sectors(4, [](std::size_t i) { return 16 + 4 * i; }) == 5);
  CHECK(sectors(4, [](std::size_t i) { return 400 * i; }) == 32);
  CHECK(sectors(16, [](std::size_t i) { return 16 * i; }) == 16);
  CHECK(sectors(8, [](std::size_t i) { return 28 + 64 * i; }) == 64);
  CHECK(sectors(2, [](std::size_t i) { return 2 * i; }, 0xffffu) == 1);
}

TEST(instructions_as_they_are_printed) {
  const Instruction in =
      Instruction::parse(0x10, " @!P3 LDG.E.128.CONSTANT R4, desc[UR6][R2.64+UR8+-0x10] ;");
  CHECK(in.name == "LDG" && in.access_bytes() == 16);
  CHECK(in.guard == 3 && in.guard_inverted && !in.guard_uniform);
  const Operand& at = in.operands.at(1);
  CHECK(at.kind == Kind::kAddress && at.index == 2 && at.wide && at.uniform == 8);
  CHECK(at.value == -16);
  const Instruction fma = Instruction::parse(0, "FFMA.RM R1, -|R2|, 1.5, c[0x0][0x210]");
  CHECK(fma.operands.at(1).minus && fma.operands.at(1).absolute);
  CHECK(fma.operands.at(2).number == 1.5 && fma.operands.at(2).decimal);
  CHECK(fma.operands.at(3).kind == Kind::kConstant && fma.operands.at(3).value == 0x210);
  CHECK_THROWS(SassError, "no instruction", Instruction::parse(0, " "));
  std::istringstream nothing("hello");
  CHECK_THROWS(SassError, "no kernel", read_program(nothing));
}

TEST(halves) {
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    CHECK(float_to_half(half_to_float(half)) == half);
    CHECK(float_to_half(-half_to_float(half)) == (half | 0x8000));
  }
  CHECK(float_to_half(1.0f + std::ldexp(1.0f, -11)) == 0x3c00);  // a tie, to even
  CHECK(float_to_half(1.0f + std::ldexp(3.0f, -11)) == 0x3c02);
  CHECK(float_to_half(1e6f) == 0x7c00);
  CHECK(float_to_bfloat(1.0f + std::ldexp(1.0f, -8)) == 0x3f80);
}

CHECK_MAIN()
