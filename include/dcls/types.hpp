#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "dcls/export.hpp"

namespace dcls {

/// Largest number of learnable axes of a kernel.
inline constexpr int kMaxDims = 3;

/// Largest size of one axis: up to it every grid index is exact in float32.
inline constexpr std::int64_t kMaxAxisSize = std::int64_t{1} << 24;

/// The list of element types, of every tensor of a call: DCLS_FOR_EACH_DTYPE(X) is X(enumerator)
/// for each, in the order of their values. float16 and bfloat16 are computed in float32.
#define DCLS_FOR_EACH_DTYPE(X) X(kFloat32) X(kFloat64) X(kFloat16) X(kBFloat16)

/// The list of interpolation versions: DCLS_FOR_EACH_VERSION(X) is X(enumerator) for each, in the
/// order of their values. With `delta = x - p` the tap of an element along one axis is
///   kV0     linear interpolation between floor(p) and floor(p) + 1
///   kV1     relu(1 - |delta|), normalised over the grid
///   kMax    relu(sigma - |delta|), normalised over the grid
///   kGauss  exp(-delta^2 / (2 sigma^2)), normalised over the grid
///   kSpline the cubic B-spline: four taps, normalised over the grid
/// kV0 is arXiv 2112.03740; kV1, kMax and kGauss are arXiv 2306.00817; kSpline is this library's
/// own.
#define DCLS_FOR_EACH_VERSION(X) X(kV0) X(kV1) X(kMax) X(kGauss) X(kSpline)

#define DCLS_ENUMERATOR(name) name,
enum class DType : int { DCLS_FOR_EACH_DTYPE(DCLS_ENUMERATOR) };
enum class Version : int { DCLS_FOR_EACH_VERSION(DCLS_ENUMERATOR) };
#undef DCLS_ENUMERATOR

#define DCLS_COUNT(name) +1
/// How many there are of each: the values of an enumeration are those below.
inline constexpr int kDTypeCount = 0 DCLS_FOR_EACH_DTYPE(DCLS_COUNT);
inline constexpr int kVersionCount = 0 DCLS_FOR_EACH_VERSION(DCLS_COUNT);
#undef DCLS_COUNT

/// A sigma_min that stands for default_sigma_min() of the version. No caller computes this number.
inline constexpr double kDefaultSigmaMin = std::numeric_limits<double>::lowest();

/// What is added to |sigma| where the caller does not say, as in the Python package; 0 for a
/// version without widths.
/// @throws std::invalid_argument if there is no such version.
DCLS_API double default_sigma_min(Version version);

enum class DeviceType : int { kCpu = 0, kCuda = 1 };

/// Where and how a call runs.
struct Execution {
  DeviceType device = DeviceType::kCpu;
  /// CUDA device ordinal of the pointers; ignored on the CPU.
  int device_index = 0;
  /// cudaStream_t on which the kernels are launched; ignored on the CPU.
  void* stream = nullptr;
  /// Number of CPU threads, at least 1; ignored on CUDA.
  int num_threads = 1;
};

/// A CUDA call or launch failed; the message names it and CUDA's reason.
class DCLS_API CudaError : public std::runtime_error {
 public:
  explicit CudaError(const std::string& what);
  ~CudaError() override;
};

}  // namespace dcls
