#pragma once

// Words of bits that mark the cells of a kernel.

#include <cstdint>

namespace dcls::cpu {

/// Bits [at, at + 64) of a row of words that has a word more than it needs.
inline std::uint64_t bits_from(const std::uint64_t* words, std::int64_t at) {
  const std::uint64_t* const word = words + at / 64;
  const int low = static_cast<int>(at % 64);
  return low == 0 ? word[0] : word[0] >> low | word[1] << (64 - low);
}

/// How many bits are set. Not every x86-64 processor has an instruction for it, and without one GCC
/// calls a function.
inline int count_bits(std::uint64_t bits) {
  bits -= bits >> 1 & 0x5555555555555555u;
  bits = (bits & 0x3333333333333333u) + (bits >> 2 & 0x3333333333333333u);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int>(bits * 0x0101010101010101u >> 56);
}

/// How many of the lowest bits are set, up to the first one that is not.
inline int trailing_ones(std::uint64_t bits) { return ~bits == 0 ? 64 : __builtin_ctzll(~bits); }

}  // namespace dcls::cpu
