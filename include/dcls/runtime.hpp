#pragma once

#include <string>
#include <vector>

#include "dcls/export.hpp"

namespace dcls {

/// How this copy of the library was built, and what it chose on this machine.
struct BuildInfo {
  std::string version;
  std::string compiler;
  bool cuda = false;
  std::string cuda_toolkit;                     ///< toolkit compiled with; empty without CUDA
  std::vector<std::string> cuda_architectures;  ///< as given to CMake, e.g. "90-real"
  bool openmp = false;
  /// Level in use: "baseline", "avx2", "avx512_256", "avx512bf16_256", "avx512", "avx512bf16" or
  /// "neon".
  std::string simd;
  std::vector<std::string> simd_compiled;  ///< levels compiled in, lowest first
};

/// @throws std::invalid_argument if the environment variable DCLS_SIMD names no level that this
///         library has and this machine can run.
DCLS_API BuildInfo build_info();

/// Whether CUDA kernels can run here, and if not, why.
struct CudaStatus {
  bool available = false;
  std::string driver;                ///< newest CUDA version the driver supports, e.g. "13.0"
  std::string reason;                ///< why not available; empty if it is
  std::vector<std::string> devices;  ///< name and compute capability of each visible GPU
};

/// Never throws for a missing or old driver: that is what `reason` is for.
DCLS_API CudaStatus cuda_status();

/// What a caller must know of an interpolation version.
struct VersionInfo {
  std::string name;  ///< as users write it
  bool normalised;   ///< whether an element is divided by the sum of its taps over the grid
  bool has_width;    ///< whether calls take a sigma
  /// The usual sigma_min; 0 without a width.
  double smallest_width;
  /// How many taps of an axis can differ from zero; 0 if the width says how many.
  int most_taps;
};

/// Of every Version, in the order of the enumerators.
DCLS_API std::vector<VersionInfo> versions();

/// What a caller must know of an element type.
struct DTypeInfo {
  std::string name;  ///< as torch has it
  int bytes;
};

/// Of every DType, in the order of the enumerators.
DCLS_API std::vector<DTypeInfo> dtypes();

}  // namespace dcls
