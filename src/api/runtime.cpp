#include "dcls/runtime.hpp"

#include <string>

#include "core/dispatch.hpp"
#include "cpu/runtime/features.hpp"
#include "cuda/cuda_backend.hpp"
#include "dcls/types.hpp"
#include "dcls/version.hpp"
#include "interpolation/interpolation.hpp"

namespace dcls {

CudaError::CudaError(const std::string& what) : std::runtime_error(what) {}
// Here, so that the type's identity lives in the library and it can be caught outside.
CudaError::~CudaError() = default;

BuildInfo build_info() {
  BuildInfo info;
  info.version = DCLS_VERSION;
#if defined(__clang__)
  info.compiler = "clang " + std::to_string(__clang_major__) + "." +
                  std::to_string(__clang_minor__) + "." + std::to_string(__clang_patchlevel__);
#elif defined(__GNUC__)
  info.compiler = "gcc " __VERSION__;
#endif
  info.cuda = cuda::compiled();
  info.cuda_toolkit = cuda::toolkit_version();
  info.cuda_architectures = cuda::architectures();
#if defined(_OPENMP)
  info.openmp = true;
#endif
  info.simd = cpu::simd_name(cpu::simd_level());
  info.simd_compiled = cpu::compiled_simd_levels();
  return info;
}

std::vector<VersionInfo> versions() {
  std::vector<VersionInfo> all;
  for (int i = 0; i < kVersionCount; ++i) {
    interp::visit(static_cast<Version>(i), [&](auto version) {
      using I = interp::Interpolation<version.value>;
      all.push_back({I::kName, I::kNormalised, I::kHasWidth, I::kSmallestWidth, I::kMostTaps});
    });
  }
  return all;
}

std::vector<DTypeInfo> dtypes() {
  std::vector<DTypeInfo> all;
  for (int i = 0; i < kDTypeCount; ++i) {
    visit_dtype(static_cast<DType>(i), [&](auto traits) {
      using Traits = decltype(traits);
      all.push_back({Traits::kName, static_cast<int>(sizeof(typename Traits::Storage))});
    });
  }
  return all;
}

CudaStatus cuda_status() { return cuda::status(); }

}  // namespace dcls
