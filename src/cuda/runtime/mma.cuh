#pragma once

// Tensor cores and asynchronous copies, sm_80 and later: the PTX instructions by name. On the host
// the lanes of a warp exchange their fragments as the tables of the PTX ISA say ("Matrix fragments
// for mma.m16n8k8", "... mma.m16n8k16", "ldmatrix").

#include <cstdint>
#include <type_traits>

#include "core/dtype.hpp"
#include "cuda/runtime/primitives.cuh"

namespace dcls::cuda {

/// Whether the code that is compiled may use what this file has.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool kTensorCores = false;
#else
inline constexpr bool kTensorCores = true;
#endif

// The site of a call, for the messages of the host.
#if defined(DCLS_CUDA_ON_HOST)
#define DCLS_SITE_PARAMETER , host_cuda::Site site = {__builtin_FILE(), __builtin_LINE()}
#else
#define DCLS_SITE_PARAMETER
#endif

/// What a 32-bit register of a fragment holds: two values of 16 bits, or one of TF32, for which
/// float stands.
template <typename Storage>
inline constexpr int kPerRegister = 4 / static_cast<int>(sizeof(Storage));

#if defined(DCLS_CUDA_ON_HOST)
namespace fragment {

/// A place in a matrix.
struct Place {
  int row, column;
};

/// The place of value `i` of a lane in A, 16 rows; in order of the registers.
template <typename Storage>
Place place_in_a(int lane, int i) {
  constexpr int kPer = kPerRegister<Storage>;
  const int reg = i / kPer;
  return {lane / 4 + 8 * (reg % 2), lane % 4 * kPer + i % kPer + 4 * kPer * (reg / 2)};
}
/// In B, 8 columns.
template <typename Storage>
Place place_in_b(int lane, int i) {
  constexpr int kPer = kPerRegister<Storage>;
  return {lane % 4 * kPer + i % kPer + 4 * kPer * (i / kPer), lane / 4};
}
/// In the 16 x 8 accumulators.
inline Place place_in_c(int lane, int i) { return {lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2}; }

template <typename Storage>
float value_of(const std::uint32_t* registers, int i) {
  if constexpr (sizeof(Storage) == 4) {
    // TF32: the tensor core reads 19 bits.
    return numeric::bit_cast<float>(registers[i] & 0xffffe000u);
  } else {
    return numeric::load(Storage{static_cast<std::uint16_t>(registers[i / 2] >> 16 * (i % 2))});
  }
}

/// Out of line, as what follows: kernels unroll hundreds of calls.
template <typename Storage, int kA, int kB>
[[gnu::noinline]] void multiply(float (&sum)[4], const std::uint32_t (&a)[kA],
                                const std::uint32_t (&b)[kB], host_cuda::Site site) {
  static_assert(kA == 2 * kB && (kA == 4 || (kA == 2 && sizeof(Storage) == 2)));
  constexpr int kPer = kPerRegister<Storage>;
  constexpr int kDepth = 4 * kPer * kB;
  std::uint32_t mine[kA + kB];
  for (int i = 0; i < kA; ++i) mine[i] = a[i];
  for (int i = 0; i < kB; ++i) mine[kA + i] = b[i];
  std::uint32_t all[host_cuda::kWarpSize][host_cuda::kExchangeWords];
  host_cuda::exchange(mine, all, site);
  float rows[16][kDepth], columns[kDepth][8];
  const int self = static_cast<int>(threadIdx.x) % 32;
  for (int lane = 0; lane < 32; ++lane) {
    // Only the rows and columns that this lane needs.
    if (lane / 4 == self / 4) {
      for (int i = 0; i < kA * kPer; ++i) {
        const Place at = place_in_a<Storage>(lane, i);
        rows[at.row][at.column] = value_of<Storage>(all[lane], i);
      }
    }
    if (lane / 8 == self % 4) {
      for (int i = 0; i < kB * kPer; ++i) {
        const Place at = place_in_b<Storage>(lane, i);
        columns[at.row][at.column] = value_of<Storage>(all[lane] + kA, i);
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    const Place at = place_in_c(self, i);
    for (int k = 0; k < kDepth; ++k) sum[i] += rows[at.row][k] * columns[k][at.column];
  }
}

/// Lane l gets of matrix i what ldmatrix gives it: of the 8 rows of 16 bytes whose addresses lanes
/// 8 i to 8 i + 7 bring.
template <int kCount, bool kTransposed>
[[gnu::noinline]] void load(std::uint32_t (&to)[kCount], const void* row, host_cuda::Site site) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  if (address % 16 != 0) host_cuda::fail("ldmatrix from an address that is no multiple of 16");
  const std::uint32_t mine[2] = {static_cast<std::uint32_t>(address),
                                 static_cast<std::uint32_t>(address >> 32)};
  std::uint32_t all[host_cuda::kWarpSize][host_cuda::kExchangeWords];
  host_cuda::exchange(mine, all, site);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < kCount; ++i) {
    std::uint16_t half[2];
    for (int h = 0; h < 2; ++h) {
      const int r = kTransposed ? lane % 4 * 2 + h : lane / 4;
      const int c = kTransposed ? lane / 4 : lane % 4 * 2 + h;
      const std::uint32_t (&words)[host_cuda::kExchangeWords] = all[8 * i + r];
      const auto from = static_cast<std::uintptr_t>(words[1]) << 32 | words[0];
      half[h] = reinterpret_cast<const std::uint16_t*>(from)[c];
    }
    to[i] = half[0] | static_cast<std::uint32_t>(half[1]) << 16;
  }
}

}  // namespace fragment

/// sum += a . b, by a whole warp: a has 16 rows, b 8 columns, both of Storage. The registers give
/// the depth: 4 of a are 16 deep (TF32: 8), 2 are 8 deep.
template <typename Storage, int kA, int kB>
__device__ __forceinline__ void mma(float (&sum)[4], const std::uint32_t (&a)[kA],
                                    const std::uint32_t (&b)[kB] DCLS_SITE_PARAMETER) {
  fragment::multiply<Storage>(sum, a, b, site);
}

/// Loads kCount (1, 2 or 4) matrices of 8 x 8 values of 16 bits from shared memory. Lanes 8 i to
/// 8 i + 7 give the addresses of the rows of matrix i, each aligned to 16 bytes; other lanes may
/// give any valid address. A lane gets values (lane / 4, lane % 4 * 2 + {0, 1}) of each matrix, or,
/// transposed, values (lane % 4 * 2 + {0, 1}, lane / 4).
template <int kCount>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&to)[kCount],
                                         const void* row DCLS_SITE_PARAMETER) {
  fragment::load<kCount, false>(to, row, site);
}
template <int kCount>
__device__ __forceinline__ void ldmatrix_transposed(std::uint32_t (&to)[kCount],
                                                    const void* row DCLS_SITE_PARAMETER) {
  fragment::load<kCount, true>(to, row, site);
}

/// The nearest TF32 number, ties away from zero.
__device__ __forceinline__ std::uint32_t to_tf32(float value) {
  const auto bits = numeric::bit_cast<std::uint32_t>(value);
  if (value != value) return 0x7fffffffu;  // one whose 19 bits are not those of an infinity
  return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

/// The lane of this thread, read anew at each call: so the compiler keeps nothing that it computes
/// from it in a register over a loop.
__device__ __forceinline__ int fresh_lane() { return static_cast<int>(threadIdx.x) % 32; }

/// Two values of 16 bits, rounded to nearest, the first in the low bits.
template <typename Storage>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  Storage pair[2];
  numeric::store(pair, low);
  numeric::store(pair + 1, high);
  return pair[0].bits | static_cast<std::uint32_t>(pair[1].bits) << 16;
}

/// Begins to copy kBytes (4, 8 or 16) bytes to shared memory. Both places are aligned to kBytes.
/// What it writes is there after a wait.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (reinterpret_cast<std::uintptr_t>(to) % kBytes != 0 ||
      reinterpret_cast<std::uintptr_t>(from) % kBytes != 0) {
    host_cuda::fail("cp.async with an address that is not aligned");
  }
  host_cuda::this_block().async_copies().copy(to, from, kBytes);
}
/// Ends a group of this thread's copies.
__device__ __forceinline__ void copy_async_commit() {
  host_cuda::this_block().async_copies().commit();
}
/// Waits for this thread's copies, except the last kPending groups.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  host_cuda::this_block().async_copies().wait(kPending);
}

#else  // nvcc

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

template <typename Storage, int kA, int kB>
__device__ __forceinline__ void mma(float (&sum)[4], const std::uint32_t (&a)[kA],
                                    const std::uint32_t (&b)[kB]) {
  static_assert(kA == 2 * kB && (kA == 4 || (kA == 2 && sizeof(Storage) == 2)));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define DCLS_MMA_DEEP(shape)                                         \
  asm("mma.sync.aligned." shape                                      \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, " \
      "%3};"                                                         \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define DCLS_MMA(shape)                                                                \
  asm("mma.sync.aligned." shape " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                         \
      : "r"(a[0]), "r"(a[1]), "r"(b[0]))
  if constexpr (sizeof(Storage) == 4) {
    DCLS_MMA_DEEP("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if constexpr (kA == 4) {
    if constexpr (std::is_same_v<Storage, Half>) {
      DCLS_MMA_DEEP("m16n8k16.row.col.f32.f16.f16.f32");
    } else {
      DCLS_MMA_DEEP("m16n8k16.row.col.f32.bf16.bf16.f32");
    }
  } else {
    if constexpr (std::is_same_v<Storage, Half>) {
      DCLS_MMA("m16n8k8.row.col.f32.f16.f16.f32");
    } else {
      DCLS_MMA("m16n8k8.row.col.f32.bf16.bf16.f32");
    }
  }
#undef DCLS_MMA_DEEP
#undef DCLS_MMA
#endif
}

// The "memory" keeps a load behind the barrier that orders it.
template <int kCount>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&to)[kCount], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const std::uint32_t at = shared_address(row);
  if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(at)
                 : "memory");
  } else {
    static_assert(kCount == 1, "ldmatrix loads 1, 2 or 4 matrices");
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(at)
                 : "memory");
  }
#endif
}
template <int kCount>
__device__ __forceinline__ void ldmatrix_transposed(std::uint32_t (&to)[kCount], const void* row) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const std::uint32_t at = shared_address(row);
  if constexpr (kCount == 4) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  } else if constexpr (kCount == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(at)
                 : "memory");
  } else {
    static_assert(kCount == 1, "ldmatrix loads 1, 2 or 4 matrices");
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(at)
                 : "memory");
  }
#endif
}

__device__ __forceinline__ std::uint32_t to_tf32(float value) {
  std::uint32_t rounded = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
#endif
  return rounded;
}

__device__ __forceinline__ int fresh_lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

template <typename Storage>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t pair = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<Storage, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
#endif
  return pair;
}

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const std::uint32_t at = shared_address(to);
  if constexpr (kBytes == 16) {  // past L1: what is in shared memory is not read there again
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(kBytes)
                 : "memory");
  }
#endif
}
__device__ __forceinline__ void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

#endif

/// The bits of a value in a register of a fragment.
__device__ __forceinline__ std::uint32_t operand(float value) { return to_tf32(value); }
__device__ __forceinline__ std::uint32_t operand(Half value) { return value.bits; }
__device__ __forceinline__ std::uint32_t operand(BFloat16 value) { return value.bits; }

}  // namespace dcls::cuda
