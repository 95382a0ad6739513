#include "cpu/runtime/features.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(DCLS_SIMD_X86)
#include <cpuid.h>
#endif

namespace dcls::cpu {
namespace {

constexpr SimdLevel kLevels[] = {
    SimdLevel::kBaseline,
#if defined(DCLS_SIMD_X86)
    SimdLevel::kAvx2,     SimdLevel::kAvx512Of256, SimdLevel::kAvx512Bf16Of256,
    SimdLevel::kAvx512,   SimdLevel::kAvx512Bf16,
#endif
};

#if defined(DCLS_SIMD_X86)
/// __builtin_cpu_supports of clang 14 does not know the word.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

bool supported(SimdLevel level) {
  switch (level) {
    case SimdLevel::kBaseline: return true;
#if defined(DCLS_SIMD_X86)
    case SimdLevel::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case SimdLevel::kAvx512Of256:
    case SimdLevel::kAvx512:
      return supported(SimdLevel::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case SimdLevel::kAvx512Bf16Of256:
    case SimdLevel::kAvx512Bf16:
      return supported(SimdLevel::kAvx512) && __builtin_cpu_supports("avx512bf16");
#endif
    default: return false;
  }
}

/// Whether the processor runs an instruction of 512 bits as two halves: Zen 4, the only one of its
/// family with AVX-512. Vectors of 256 bits are then no slower, cross half as many cache lines, and
/// leave fewer lanes empty at the end of a row.
bool halves_vectors() {
#if defined(DCLS_SIMD_X86)
  return __builtin_cpu_is("amdfam19h");
#else
  return false;
#endif
}

SimdLevel choose() {
  const char* const wish = std::getenv("DCLS_SIMD");
  if (wish != nullptr && *wish != '\0') {
    for (const SimdLevel level : kLevels) {
      if (std::string(wish) == simd_name(level) && supported(level)) return level;
    }
    std::string takes;
    for (const SimdLevel level : kLevels) {
      if (supported(level)) takes += std::string(takes.empty() ? "" : ", ") + simd_name(level);
    }
    throw std::invalid_argument("environment variable DCLS_SIMD must be one of " + takes +
                                " on this machine, got '" + wish + "'");
  }
  SimdLevel best = SimdLevel::kBaseline;
  for (const SimdLevel level : kLevels) {
    if (level >= SimdLevel::kAvx512 && halves_vectors()) break;
    if (supported(level)) best = level;
  }
  return best;
}

}  // namespace

const char* simd_name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kAvx2: return "avx2";
    case SimdLevel::kAvx512Of256: return "avx512_256";
    case SimdLevel::kAvx512Bf16Of256: return "avx512bf16_256";
    case SimdLevel::kAvx512: return "avx512";
    case SimdLevel::kAvx512Bf16: return "avx512bf16";
    case SimdLevel::kBaseline: break;
  }
#if defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

SimdLevel simd_level() {
  static const SimdLevel level = choose();
  return level;
}

std::vector<std::string> compiled_simd_levels() {
  std::vector<std::string> names;
  for (const SimdLevel level : kLevels) names.emplace_back(simd_name(level));
  return names;
}

}  // namespace dcls::cpu
