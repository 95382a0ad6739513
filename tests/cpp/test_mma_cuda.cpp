// The tensor-core primitives on the host, against plain matrix products.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "check.hpp"
#include "construct_problem.hpp"
#include "cuda/runtime/mma.cuh"
#include "cuda_host/schedules.hpp"

using namespace dcls;
using namespace dcls::test;
using host_cuda::GuardedBuffer;
using host_cuda::LaunchOptions;

namespace {

/// The fragments of the PTX ISA, lane for lane as its text gives them: groupID and
/// threadID_in_group.
struct Table {
  int row[8], column[8];
};
Table a_of_halves(int lane) {
  const int group = lane >> 2, in_group = lane % 4;
  Table t{};
  for (int i = 0; i < 8; ++i) {
    t.row[i] = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    t.column[i] = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
  }
  return t;
}
Table b_of_halves(int lane) {
  const int group = lane >> 2, in_group = lane % 4;
  Table t{};
  for (int i = 0; i < 4; ++i) {
    t.row[i] = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    t.column[i] = group;
  }
  return t;
}
Table a_of_floats(int lane) {
  const int group = lane >> 2, in_group = lane % 4;
  return {{group, group + 8, group, group + 8}, {in_group, in_group, in_group + 4, in_group + 4}};
}
Table b_of_floats(int lane) {
  const int group = lane >> 2, in_group = lane % 4;
  return {{in_group, in_group + 4}, {group, group}};
}

std::uint32_t bits_of(float value) { return numeric::bit_cast<std::uint32_t>(value); }

/// One warp multiplies a (16 x kDepth) by b (kDepth x 8) and adds to c.
template <typename Storage, int kDepth>
__global__ void multiply(const Storage* a, const Storage* b, float* c) {
  constexpr int kPer = sizeof(Storage) == 4 ? 1 : 2;
  constexpr int kB = kDepth / 4 / kPer;
  const int lane = static_cast<int>(threadIdx.x);
  const Table in_a = kPer == 1 ? a_of_floats(lane) : a_of_halves(lane);
  const Table in_b = kPer == 1 ? b_of_floats(lane) : b_of_halves(lane);
  std::uint32_t fa[2 * kB] = {}, fb[kB] = {};
  const auto pack = [&](std::uint32_t* to, int i, const Storage& value) {
    if constexpr (kPer == 1) {
      to[i] = bits_of(value);
    } else {
      to[i / 2] |= static_cast<std::uint32_t>(value.bits) << 16 * (i % 2);
    }
  };
  for (int i = 0; i < 2 * kB * kPer; ++i) pack(fa, i, a[in_a.row[i] * kDepth + in_a.column[i]]);
  for (int i = 0; i < kB * kPer; ++i) pack(fb, i, b[in_b.row[i] * 8 + in_b.column[i]]);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  cuda::mma<Storage>(sum, fa, fb);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

/// Integers of few bits in no order: products and sums are exact.
std::vector<double> numbers(std::size_t count, int seed) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    values[i] =
        static_cast<double>((i * 37 + i * i * 11 + static_cast<std::size_t>(seed)) % 31) - 15;
  }
  return values;
}

std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b,
                            const std::vector<double>& c, std::size_t depth) {
  std::vector<double> sum = c;
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      for (std::size_t k = 0; k < depth; ++k) sum[i * 8 + j] += a[i * depth + k] * b[k * 8 + j];
    }
  }
  return sum;
}

template <typename Storage, int kDepth>
void check_product() {
  const check::Case here("dtype ", static_cast<int>(DTypeOf<Storage>::value), ", depth ", kDepth);
  const auto a = numbers(16 * kDepth, 1), b = numbers(8 * kDepth, 2), c = numbers(16 * 8, 3);
  host_cuda::in_all_schedules([&](const LaunchOptions& options) {
    const GuardedBuffer<Storage> in_a(to_storage<Storage>(a), "a"),
        in_b(to_storage<Storage>(b), "b");
    GuardedBuffer<float> in_c(to_storage<float>(c), "c");
    host_cuda::launch(options, multiply<Storage, kDepth>, 1, 32, 0, in_a.data(), in_b.data(),
                      in_c.data());
    CHECK_SAME_BITS(to_double(in_c), product(a, b, c, kDepth));
  });
}

/// As a kernel does it: a and b come from shared memory by ldmatrix; b lies row-major, or its
/// transpose does, and a likewise.
template <bool kTransposed>
__global__ void multiply_from_shared(const BFloat16* a, const BFloat16* b, float* c) {
  BFloat16* const shared = cuda::dynamic_shared<BFloat16>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 16 * 16; i += 32) shared[i] = a[i];
  for (int i = lane; i < 16 * 8; i += 32) shared[16 * 16 + i] = b[i];
  __syncwarp();
  const int row = lane % 8, matrix = lane / 8;
  std::uint32_t fa[4], fb[2];
  if constexpr (kTransposed) {  // a: 16 deep x 16, b: 16 deep x 8
    cuda::ldmatrix_transposed(fa, shared + (row + matrix / 2 * 8) * 16 + matrix % 2 * 8);
    cuda::ldmatrix_transposed(fb, shared + 16 * 16 + (row + matrix % 2 * 8) * 8);
  } else {  // a: 16 x 16 deep, b: 8 x 16 deep
    cuda::ldmatrix(fa, shared + (row + matrix % 2 * 8) * 16 + matrix / 2 * 8);
    cuda::ldmatrix(fb, shared + 16 * 16 + row * 16 + matrix % 2 * 8);
  }
  float sum[4] = {};
  cuda::mma<BFloat16>(sum, fa, fb);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

std::vector<double> transposed(const std::vector<double>& values, std::size_t columns) {
  std::vector<double> to(values.size());
  const std::size_t rows = values.size() / columns;
  for (std::size_t i = 0; i < values.size(); ++i) to[i % columns * rows + i / columns] = values[i];
  return to;
}

/// Each lane's part of kCount matrices.
template <int kCount, bool kTransposed>
__global__ void load_matrices(const Half* from, std::uint32_t* to) {
  Half* const shared = cuda::dynamic_shared<Half>();
  for (int i = static_cast<int>(threadIdx.x); i < kCount * 64; i += 32) shared[i] = from[i];
  __syncwarp();
  std::uint32_t got[kCount];
  const Half* const row = shared + threadIdx.x % (8 * kCount) * 8;
  if constexpr (kTransposed) {
    cuda::ldmatrix_transposed(got, row);
  } else {
    cuda::ldmatrix(got, row);
  }
  for (int i = 0; i < kCount; ++i) to[threadIdx.x * kCount + static_cast<unsigned>(i)] = got[i];
}

template <int kCount, bool kTransposed>
void check_load() {
  const check::Case here(kCount, " matrices", kTransposed ? ", transposed" : "");
  std::vector<Half> values(kCount * 64);
  for (std::size_t i = 0; i < values.size(); ++i) values[i].bits = static_cast<std::uint16_t>(i);
  const GuardedBuffer<Half> from(values, "from");
  GuardedBuffer<std::uint32_t> to(32 * kCount, "to");
  host_cuda::launch(load_matrices<kCount, kTransposed>, 1, 32, sizeof(Half) * values.size(),
                    from.data(), to.data());
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < kCount; ++i) {
      const unsigned row = lane / 4, pair = lane % 4 * 2, first = 64 * i;
      const unsigned low = kTransposed ? first + pair * 8 + row : first + row * 8 + pair;
      const unsigned high = kTransposed ? low + 8 : low + 1;
      CHECK_EQ(to.data()[lane * kCount + i], low | high << 16);
    }
  }
}

/// Reverses `from` in pairs of blocks of threads' parts, by copies in two groups.
template <int kBytes, bool kWait, bool kBarrier>
__global__ void copy_reversed(const unsigned char* from, unsigned char* to) {
  unsigned char* const shared = cuda::dynamic_shared<unsigned char>();
  const int thread = static_cast<int>(threadIdx.x);
  const int size = static_cast<int>(blockDim.x) * kBytes;
  for (int group = 0; group < 2; ++group) {
    const int at = thread * kBytes;
    cuda::copy_async<kBytes>(shared + group * size + at, from + group * size + at);
    cuda::copy_async_commit();
  }
  for (int group = 0; group < 2; ++group) {
    if constexpr (kWait) {
      if (group == 0) {
        cuda::copy_async_wait<1>();
      } else {
        cuda::copy_async_wait<0>();
      }
    }
    if constexpr (kBarrier) __syncthreads();
    const int at = (static_cast<int>(blockDim.x) - 1 - thread) * kBytes;
    for (int i = 0; i < kBytes; ++i) {
      to[group * size + thread * kBytes + i] = shared[group * size + at + i];
    }
  }
  cuda::copy_async_wait<0>();
}

template <int kBytes, bool kWait, bool kBarrier>
bool copies_arrive(const LaunchOptions& options) {
  constexpr unsigned kThreads = 64;
  std::vector<unsigned char> values(2 * kThreads * kBytes);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<unsigned char>(i % 251);
  const GuardedBuffer<unsigned char> from(values, "from");
  GuardedBuffer<unsigned char> to(values.size(), "to");
  host_cuda::launch(options, copy_reversed<kBytes, kWait, kBarrier>, 1, kThreads, values.size(),
                    from.data(), to.data());
  bool all = true;
  for (unsigned i = 0; i < values.size(); ++i) {
    const unsigned group = i / (kThreads * kBytes), thread = i / kBytes % kThreads;
    const unsigned part = group * kThreads + kThreads - 1 - thread;
    all = all && to.data()[i] == values[part * kBytes + i % kBytes];
  }
  return all;
}

__global__ void copy_without_wait(const unsigned char* from) {
  cuda::copy_async<16>(cuda::dynamic_shared<unsigned char>() + threadIdx.x * 16, from);
  cuda::copy_async_commit();
}
__global__ void load_from(int offset) {
  std::uint32_t got[1];
  cuda::ldmatrix(got, cuda::dynamic_shared<unsigned char>() + offset);
}
__global__ void multiply_in_part() {
  float sum[4] = {};
  const std::uint32_t a[2] = {}, b[1] = {};
  if (threadIdx.x < 16) cuda::mma<Half>(sum, a, b);
}

}  // namespace

TEST(products_of_every_shape_and_type) {
  check_product<Half, 8>();
  check_product<Half, 16>();
  check_product<BFloat16, 8>();
  check_product<BFloat16, 16>();
  check_product<float, 8>();
}

TEST(products_of_loaded_matrices) {
  const auto a = numbers(16 * 16, 1), b = numbers(16 * 8, 2);
  const auto expected = product(a, b, std::vector<double>(16 * 8), 16);
  const auto run = [&](auto* kernel, const std::vector<double>& a_in,
                       const std::vector<double>& b_in) {
    const GuardedBuffer<BFloat16> from_a(to_storage<BFloat16>(a_in), "a"),
        from_b(to_storage<BFloat16>(b_in), "b");
    GuardedBuffer<float> c(16 * 8, "c");
    host_cuda::launch(kernel, 1, 32, (16 * 16 + 16 * 8) * 2, from_a.data(), from_b.data(),
                      c.data());
    CHECK_SAME_BITS(to_double(c), expected);
  };
  run(&multiply_from_shared<false>, a, transposed(b, 8));
  run(&multiply_from_shared<true>, transposed(a, 16), b);
}

TEST(loads_of_every_count) {
  check_load<1, false>();
  check_load<2, false>();
  check_load<4, false>();
  check_load<1, true>();
  check_load<2, true>();
  check_load<4, true>();
}

TEST(tf32_reads_19_bits_and_rounding_is_to_nearest) {
  CHECK_EQ(cuda::to_tf32(1.0f), bits_of(1.0f));
  CHECK_EQ(cuda::to_tf32(1.0f + 0x1p-11f), bits_of(1.0f + 0x1p-10f));  // a tie, away from zero
  CHECK_EQ(cuda::to_tf32(-1.0f - 0x1p-12f), bits_of(-1.0f));
  CHECK_EQ(cuda::to_tf32(HUGE_VALF), bits_of(HUGE_VALF));
  const std::uint32_t smallest_nan = 0x7f800001u;
  const std::uint32_t read = cuda::to_tf32(numeric::bit_cast<float>(smallest_nan)) & 0xffffe000u;
  CHECK(std::isnan(numeric::bit_cast<float>(read)));
  const std::vector<float> a(16 * 8, 1.0f + 0x1p-11f), b(8 * 8, 1.0f);
  const GuardedBuffer<float> in_a(a, "a"), in_b(b, "b");
  GuardedBuffer<float> c(std::vector<float>(16 * 8, 0.0f), "c");
  host_cuda::launch(multiply<float, 8>, 1, 32, 0, in_a.data(), in_b.data(), c.data());
  for (std::size_t i = 0; i < c.size(); ++i) CHECK_EQ(c.data()[i], 8.0f);
}

TEST(asynchronous_copies) {
  host_cuda::in_all_schedules([](const LaunchOptions& options) {
    CHECK(copies_arrive<4, true, true>(options));
    CHECK(copies_arrive<8, true, true>(options));
    CHECK(copies_arrive<16, true, true>(options));
  });
}

TEST(faults_of_these_primitives_are_found) {
  // No wait, which is a race: ThreadSanitizer would report it.
#if !defined(DCLS_HOST_CUDA_TSAN)
  CHECK(!(copies_arrive<16, false, true>(LaunchOptions{})));
#endif
  const GuardedBuffer<unsigned char> from(std::vector<unsigned char>(16), "from");
  using host_cuda::KernelError;
  CHECK_THROWS(KernelError, "before its asynchronous copies",
               host_cuda::launch(copy_without_wait, 1, 32, 512, from.data()));
  CHECK_THROWS(KernelError, "no multiple of 16", host_cuda::launch(load_from, 1, 32, 512, 8));
  CHECK_THROWS(KernelError, "", host_cuda::launch(multiply_in_part, 1, 32, 0));
  CHECK_THROWS(KernelError, "not whole", host_cuda::launch(multiply_in_part, 1, 16, 0));
}

CHECK_MAIN()
