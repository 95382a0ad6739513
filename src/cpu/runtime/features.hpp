#pragma once

#include <string>
#include <vector>

namespace dcls::cpu {

/// Of256 is AVX-512 with vectors of 256 bits, Bf16 the same with products of pairs of bfloat16
/// values, for convolutions of such.
enum class SimdLevel {
  kBaseline,
  kAvx2,
  kAvx512Of256,
  kAvx512Bf16Of256,
  kAvx512,
  kAvx512Bf16,
};

/// The level in use: the best that is compiled in and that this machine has, or the one that the
/// environment variable DCLS_SIMD (baseline, avx2, avx512_256, avx512bf16_256, avx512, avx512bf16;
/// on 64-bit Arm neon) asks for. Decided on the first call.
/// @throws std::invalid_argument if DCLS_SIMD names a level that is not to be had.
SimdLevel simd_level();

/// The `name` of a level: baseline::name, avx2::name and so on, all of one type. A macro, since all
/// but the first are no names where they are not compiled.
#if defined(DCLS_SIMD_X86)
#define DCLS_OF_LEVEL(level, name)                                      \
  ((level) >= ::dcls::cpu::SimdLevel::kAvx512        ? avx512::name     \
   : (level) >= ::dcls::cpu::SimdLevel::kAvx512Of256 ? avx512_256::name \
   : (level) == ::dcls::cpu::SimdLevel::kAvx2        ? avx2::name       \
                                                     : baseline::name)
#else
#define DCLS_OF_LEVEL(level, name) (baseline::name)
#endif
/// That of the level in use.
#define DCLS_OF_SIMD_LEVEL(name) DCLS_OF_LEVEL(::dcls::cpu::simd_level(), name)

const char* simd_name(SimdLevel level);

/// Levels compiled in, lowest first.
std::vector<std::string> compiled_simd_levels();

}  // namespace dcls::cpu
