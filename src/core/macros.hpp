#pragma once

// Functions of the shared mathematics. Under nvcc they exist for both sides. For the host they have
// internal linkage and are always inlined: this code is compiled several times with different
// instruction sets, and an inline function with external linkage would let the linker keep the
// AVX-512 copy for every caller.
#if defined(__CUDACC__)
#define DCLS_HD __host__ __device__ __forceinline__
#else
#define DCLS_HD static inline __attribute__((always_inline))
#endif

// The same for a static function of a class, which has no linkage of its own to choose.
#if defined(__CUDACC__)
#define DCLS_HD_STATIC static DCLS_HD
#else
#define DCLS_HD_STATIC DCLS_HD
#endif
