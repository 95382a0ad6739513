#pragma once

// Which cells of a kernel are to be visited, as bits. Only for files compiled per instruction set.

#include <cstdint>
#include <cstring>

#include "core/dispatch.hpp"
#include "core/macros.hpp"
#include "cpu/simd/vectors.hpp"

namespace dcls::cpu {
namespace DCLS_SIMD_NAMESPACE {

/// A bit for each of eight values of which some bit but the highest kDropped is set. No branches:
/// which cells are taken cannot be foreseen.
template <typename Bits, int kDropped>
DCLS_HD std::uint64_t mark_eight(const Bits* values) {
  using Lanes __attribute__((vector_size(8 * sizeof(Bits)))) = Bits;
  using Bytes __attribute__((vector_size(8))) = std::int8_t;
  Lanes lanes;
  memcpy(&lanes, values, sizeof(lanes));
  const Bytes set = __builtin_convertvector((lanes << kDropped) != 0, Bytes);
  std::uint64_t bytes;  // each 0 or 255
  memcpy(&bytes, &set, sizeof(bytes));
  // The factor brings the lowest bits of the bytes, the first byte's lowest, into the highest byte.
  return (bytes & 0x0101010101010101u) * 0x0102040810204080u >> 56;
}

template <typename Bits, int kDropped>
DCLS_HD void mark_values(const void* values, std::int64_t begin, std::int64_t end,
                         std::uint64_t* bits) {
  const Bits* const from = static_cast<const Bits*>(values);
  std::int64_t c = begin;
  for (; c + 64 <= end; c += 64) {
    std::uint64_t word = 0;
    for (int i = 0; i < 64; i += 8) word |= mark_eight<Bits, kDropped>(from + c + i) << i;
    bits[c / 64] = word;
  }
  if (c == end) return;
  std::uint64_t word = 0;
  for (std::int64_t i = 0; c + i < end; ++i) {
    const Bits value = static_cast<Bits>(from[c + i] << kDropped);
    word |= static_cast<std::uint64_t>(value != 0) << i;
  }
  bits[c / 64] = word;
}

/// Without the sign, both zeros are 0: cheaper than a conversion of 16-bit values.
inline void mark_weights(DType dtype, const void* kernel, std::int64_t begin, std::int64_t end,
                         std::uint64_t* bits) {
  dispatch_dtype(dtype, [&](auto tag) {
    constexpr std::size_t kBytes = sizeof(typename decltype(tag)::type);
    if constexpr (kBytes == 2) {
      mark_values<std::uint16_t, 1>(kernel, begin, end, bits);
    } else if constexpr (kBytes == 4) {
      mark_values<std::uint32_t, 1>(kernel, begin, end, bits);
    } else {
      mark_values<std::uint64_t, 1>(kernel, begin, end, bits);
    }
  });
}

inline void mark_support(const void* support, std::int64_t begin, std::int64_t end,
                         std::uint64_t* bits) {
  mark_values<std::uint8_t, 0>(support, begin, end, bits);
}

}  // namespace DCLS_SIMD_NAMESPACE
}  // namespace dcls::cpu
