#pragma once

#include <string>
#include <vector>

namespace dcls::cpu {

enum class SimdLevel { kBaseline, kAvx2, kAvx512 };

/// The level in use: the best that is compiled in and that this machine has, or the one that the
/// environment variable DCLS_SIMD (baseline, avx2, avx512) asks for. Decided on the first call.
/// @throws std::invalid_argument if DCLS_SIMD names a level that is not to be had.
SimdLevel simd_level();

const char* simd_name(SimdLevel level);

/// Levels compiled in, lowest first.
std::vector<std::string> compiled_simd_levels();

}  // namespace dcls::cpu
