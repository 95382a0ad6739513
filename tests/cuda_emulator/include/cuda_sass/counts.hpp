// What a launch costs, counted access by access: executions, wavefronts of shared memory, sectors
// of global memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace dcls::cuda_sass {

inline constexpr int kLanes = 32;
using Lanes = std::array<std::uint32_t, kLanes>;
using Addresses = std::array<std::uint64_t, kLanes>;

struct Wavefronts {
  int taken = 0;
  int least = 0;  ///< if all banks had as much to do
};

/// Wavefronts that one access of a warp to shared memory takes: in each, a bank gives one word of 4
/// bytes. 32 lanes take part at a time, 16 where each has 8 bytes, 8 where it has 16.
inline Wavefronts shared_wavefronts(const Addresses& address, std::uint32_t lanes, int bytes) {
  const int together = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  Wavefronts wavefronts;
  for (int first = 0; first < kLanes; first += together) {
    std::array<std::uint64_t, kLanes * 2> words;
    std::size_t count = 0;
    for (int lane = first; lane < first + together; ++lane) {
      if ((lanes >> lane & 1u) == 0) continue;
      const std::uint64_t last =
          (address[static_cast<std::size_t>(lane)] + static_cast<std::uint64_t>(bytes) - 1) / 4;
      for (std::uint64_t w = address[static_cast<std::size_t>(lane)] / 4; w <= last; ++w) {
        words[count++] = w;
      }
    }
    std::sort(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(count));
    std::array<int, 32> banks{};
    int most = 0, distinct = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (i > 0 && words[i] == words[i - 1]) continue;  // one word serves any number of lanes
      ++distinct;
      most = std::max(most, ++banks[words[i] % 32]);
    }
    wavefronts.taken += most;
    wavefronts.least += (distinct + 31) / 32;
  }
  return wavefronts;
}

/// Distinct pieces of `size` bytes that an access of a warp to memory touches: 32 for sectors, 128
/// for lines.
inline int touched(const Addresses& address, std::uint32_t lanes, int bytes, std::uint64_t size) {
  std::array<std::uint64_t, kLanes * 2> pieces;
  std::size_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((lanes >> lane & 1u) == 0) continue;
    const std::uint64_t first = address[static_cast<std::size_t>(lane)];
    pieces[count++] = first / size;
    const std::uint64_t last = (first + static_cast<std::uint64_t>(bytes) - 1) / size;
    if (last != pieces[count - 1]) pieces[count++] = last;
  }
  std::sort(pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(count));
  return static_cast<int>(
      std::unique(pieces.begin(), pieces.begin() + static_cast<std::ptrdiff_t>(count)) -
      pieces.begin());
}

/// Of one instruction of a kernel.
struct Count {
  std::uint64_t issued = 0;      ///< by a warp
  std::uint64_t lanes = 0;       ///< that took part
  std::uint64_t accesses = 0;    ///< to memory, by a warp: issued, with a lane at least
  std::uint64_t wavefronts = 0;  ///< of shared memory; of global memory lines of 128 bytes
  std::uint64_t least = 0;       ///< of shared memory, the wavefronts without a conflict
  std::uint64_t sectors = 0;     ///< of global memory

  Count& operator+=(const Count& other) {
    issued += other.issued;
    lanes += other.lanes;
    accesses += other.accesses;
    wavefronts += other.wavefronts;
    least += other.least;
    sectors += other.sectors;
    return *this;
  }
};

/// Of all instructions of a kernel, in order.
using Counts = std::vector<Count>;

}  // namespace dcls::cuda_sass
