// The operations of SASS on memory, and the products of matrices.
#pragma once

#include "operations_float.hpp"

namespace dcls::cuda_sass::operation {

inline Addresses addresses(const Step& s, const Operand& o, bool of_64_bits) {
  Addresses result;
  std::uint64_t same = static_cast<std::uint64_t>(o.value);
  if (o.uniform >= 0) {
    const auto u = static_cast<std::size_t>(o.uniform);
    same += s.warp.u[u];
    if (of_64_bits && u != kZeroUniform) same += std::uint64_t{s.warp.u[u + 1]} << 32;
  }
  const std::size_t base = static_cast<std::size_t>(o.index < 0 ? kZeroRegister : o.index);
  const bool pair_of_registers = o.wide && base != kZeroRegister;
  for (std::size_t l = 0; l < kLanes; ++l) {
    std::uint64_t value = std::uint64_t{s.warp.r[base][l]} * static_cast<unsigned>(o.scale);
    if (pair_of_registers) value += std::uint64_t{s.warp.r[base + 1][l]} << 32;
    result[l] = same + value;
    if (!of_64_bits) result[l] &= 0xffffffffu;
  }
  return result;
}

enum class Space { kShared, kGlobal, kLocal, kGeneric };

inline void count_access(const Step& s, const Addresses& at, std::uint32_t lanes, int bytes,
                         bool shared) {
  if (lanes == 0) return;
  ++s.count.accesses;
  if (shared) {
    const Wavefronts wavefronts = shared_wavefronts(at, lanes, bytes);
    s.count.wavefronts += static_cast<unsigned>(wavefronts.taken);
    s.count.least += static_cast<unsigned>(wavefronts.least);
  } else {
    s.count.wavefronts += static_cast<unsigned>(touched(at, lanes, bytes, 128));
    s.count.sectors += static_cast<unsigned>(touched(at, lanes, bytes, 32));
  }
}

/// The memory behind an address, for one lane. Counts nothing.
inline unsigned char* memory(const Step& s, Space space, std::uint64_t address, std::size_t lane,
                             int bytes) {
  const bool in_window = (address >> 32) == kSharedWindow;
  if (space == Space::kShared || (space == Space::kGeneric && in_window)) {
    return s.machine.shared(address & 0xffffffffu, bytes);
  }
  if (space != Space::kLocal) return reinterpret_cast<unsigned char*>(address);
  const std::size_t stack = s.machine.kernel().stack;
  if (address + static_cast<std::uint64_t>(bytes) > stack) {
    throw SassError("address " + std::to_string(address) + " is outside of the stack");
  }
  return s.warp.local.data() + lane * stack + address;
}

inline bool is_shared(const Step& s, Space space, const Addresses& at) {
  if (space != Space::kGeneric) return space == Space::kShared;
  return at[static_cast<std::size_t>(__builtin_ctz(s.lanes))] >> 32 == kSharedWindow;
}

template <Space kSpace>
void load(const Step& s) {
  const Operand* dest = nullptr;
  const Operand* from = nullptr;
  for (const Operand& o : s.in.operands) {
    if (o.kind == Kind::kAddress) from = &o;
    if (dest == nullptr && o.kind == Kind::kRegister) dest = &o;
  }
  const int bytes = s.in.access_bytes();
  const Addresses at = addresses(s, *from, kSpace == Space::kGlobal || kSpace == Space::kGeneric);
  if (kSpace != Space::kLocal) count_access(s, at, s.lanes, bytes, is_shared(s, kSpace, at));
  std::array<Lanes, 4> words{};
  for_lanes(s.lanes, [&](std::size_t l) {
    const unsigned char* const value = memory(s, kSpace, at[l], l, bytes);
    if (bytes < 4) {
      std::uint32_t word = 0;
      std::memcpy(&word, value, static_cast<std::size_t>(bytes));
      if (s.in.has("S8")) word = static_cast<std::uint32_t>(static_cast<std::int8_t>(word));
      if (s.in.has("S16")) word = static_cast<std::uint32_t>(static_cast<std::int16_t>(word));
      words[0][l] = word;
      return;
    }
    for (std::size_t w = 0; w < static_cast<std::size_t>(bytes) / 4; ++w) {
      std::memcpy(&words[w][l], value + 4 * w, 4);
    }
  });
  for (int w = 0; w < std::max(1, bytes / 4); ++w) {
    write(s, *dest, [&](std::size_t l) { return words[static_cast<std::size_t>(w)][l]; }, w);
  }
}

template <Space kSpace>
void store(const Step& s) {
  const Operand* to = nullptr;
  const Operand* from = nullptr;
  for (const Operand& o : s.in.operands) {
    if (o.kind == Kind::kAddress) to = &o;
    if (o.kind == Kind::kRegister) from = &o;
  }
  const int bytes = s.in.access_bytes();
  const Addresses at = addresses(s, *to, kSpace == Space::kGlobal || kSpace == Space::kGeneric);
  if (kSpace != Space::kLocal) count_access(s, at, s.lanes, bytes, is_shared(s, kSpace, at));
  for (int w = 0; w < std::max(1, bytes / 4); ++w) {
    Lanes room;
    const std::uint32_t* const word = ints(s, *from, room, w);
    for_lanes(s.lanes, [&](std::size_t l) {
      unsigned char* const value = memory(s, kSpace, at[l], l, bytes);
      std::memcpy(value + 4 * w, &word[l], static_cast<std::size_t>(std::min(bytes, 4)));
    });
  }
}

/// LDGSTS, cp.async: from global to shared memory; zeros where a predicate says so. What is copied
/// arrives when the warp waits for it, and is NaN until then.
inline void copy_async(const Step& s) {
  const Parts p(s.in, false);
  const int bytes = s.in.access_bytes();
  const Addresses to = addresses(s, *p.source[0], false);
  const Addresses from = addresses(s, *p.source[1], true);
  const std::uint32_t read = s.lanes & (p.ins > 0 ? predicate(s, *p.in[0]) : ~0u);
  count_access(s, to, s.lanes, bytes, true);
  if (read != 0) s.count.sectors += static_cast<unsigned>(touched(from, read, bytes, 32));
  for_lanes(s.lanes, [&](std::size_t l) {
    AsyncCopy copy{s.machine.shared(to[l], bytes), bytes, {}};
    if ((read >> l & 1u) != 0) {
      std::memcpy(copy.data.data(), reinterpret_cast<const void*>(from[l]),
                  static_cast<std::size_t>(bytes));
    }
    std::memset(copy.to, 0xff, static_cast<std::size_t>(bytes));
    s.warp.copies.back().push_back(copy);
  });
}

/// LDGDEPBAR: the copies so far are a group.
inline void close_copies(const Step& s) { s.warp.copies.emplace_back(); }

/// DEPBAR.LE SB0, n: waits for all groups of copies but the last n.
inline void wait_for_copies(const Step& s) {
  if (!s.in.has("LE") || s.in.operands.size() < 2) return;
  const auto open = static_cast<std::size_t>(s.in.operands[1].value) + 1;
  while (s.warp.copies.size() > open) {
    for (const AsyncCopy& copy : s.warp.copies.front()) {
      std::memcpy(copy.to, copy.data.data(), static_cast<std::size_t>(copy.bytes));
    }
    s.warp.copies.erase(s.warp.copies.begin());
  }
}

/// LDSM, ldmatrix: matrices of 8 rows of 16 bytes; the lanes 8 * i to 8 * i + 7 have the addresses
/// of the i-th one's rows.
inline void load_matrices(const Step& s) {
  const Parts p(s.in);
  const int count = s.in.has("4") ? 4 : s.in.has("2") ? 2 : 1;
  const bool transposed = s.in.has("MT88");
  const Addresses at = addresses(s, *p.source[0], false);
  ++s.count.accesses;
  for (int m = 0; m < count; ++m) {
    const std::uint32_t rows = 0xffu << (8 * m);
    const Wavefronts wavefronts = shared_wavefronts(at, rows, 16);
    s.count.wavefronts += static_cast<unsigned>(wavefronts.taken);
    s.count.least += static_cast<unsigned>(wavefronts.least);
    Lanes words;
    for (std::size_t l = 0; l < kLanes; ++l) {
      const auto element = [&](std::size_t row, std::size_t column) {
        std::uint16_t value = 0;
        const std::uint64_t begin = at[static_cast<std::size_t>(8 * m) + row];
        std::memcpy(&value, s.machine.shared(begin, 16) + 2 * column, 2);
        return std::uint32_t{value};
      };
      const std::size_t i = l / 4, k = 2 * (l % 4);
      words[l] = transposed ? element(k + 1, i) << 16 | element(k, i)
                            : element(i, k + 1) << 16 | element(i, k);
    }
    write(s, *p.dest, [&](std::size_t l) { return words[l]; }, m);
  }
}

/// HMMA with sums in float32: 16 rows, 8 columns.
inline void multiply_matrices(const Step& s) {
  const Parts p(s.in);
  const bool tf32 = s.in.has("TF32"), bf16 = s.in.has("BF16");
  const int depth = s.in.has("16816") ? 16 : s.in.has("1688") ? 8 : s.in.has("1684") ? 4 : 0;
  if (depth == 0 || !s.in.has("F32")) throw SassError("unknown product of matrices");
  Lanes room;
  float a[16][16] = {}, b[16][8] = {}, c[16][8] = {};
  // A register holds `per` values of k; a block of registers covers 4 * per of them.
  const int per = tf32 ? 1 : 2;
  const auto value = [&](std::uint32_t word, int i) {
    if (tf32) return bits_as<float>(word & 0xffffe000u);
    const auto half = static_cast<std::uint16_t>(word >> (16 * i));
    return bf16 ? bfloat_to_float(half) : half_to_float(half);
  };
  const int blocks = depth / (4 * per);
  for (int block = 0; block < blocks; ++block) {
    for (int i = 0; i < per; ++i) {
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t* const w = ints(s, *p.source[0], room, 2 * block + half);
        for (std::size_t l = 0; l < kLanes; ++l) {
          a[l / 4 + 8 * static_cast<std::size_t>(half)]
           [4 * static_cast<std::size_t>(per * block) + static_cast<std::size_t>(per) * (l % 4) +
            static_cast<std::size_t>(i)] = value(w[l], i);
        }
      }
      const std::uint32_t* const w = ints(s, *p.source[1], room, block);
      for (std::size_t l = 0; l < kLanes; ++l) {
        b[4 * static_cast<std::size_t>(per * block) + static_cast<std::size_t>(per) * (l % 4) +
          static_cast<std::size_t>(i)][l / 4] = value(w[l], i);
      }
    }
  }
  for (int r = 0; r < 4; ++r) {
    const std::uint32_t* const w = ints(s, *p.source[2], room, r);
    for (std::size_t l = 0; l < kLanes; ++l) {
      c[l / 4 + 8 * static_cast<std::size_t>(r / 2)]
       [2 * (l % 4) + static_cast<std::size_t>(r % 2)] = bits_as<float>(w[l]);
    }
  }
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      double sum = static_cast<double>(c[m][n]);
      for (std::size_t k = 0; k < static_cast<std::size_t>(depth); ++k) {
        sum += static_cast<double>(a[m][k]) * static_cast<double>(b[k][n]);
      }
      c[m][n] = static_cast<float>(sum);
    }
  }
  for (int r = 0; r < 4; ++r) {
    write(
        s, *p.dest,
        [&](std::size_t l) {
          return bits_as<std::uint32_t>(c[l / 4 + 8 * static_cast<std::size_t>(r / 2)]
                                         [2 * (l % 4) + static_cast<std::size_t>(r % 2)]);
        },
        r);
  }
}

/// LDC: from constant memory, with a place that may differ between the lanes.
inline void load_constant(const Step& s) {
  const Operand& dest = s.in.operands[0];
  const Operand& from = s.in.operands[1];
  const int bytes = s.in.access_bytes();
  const auto place = [&](std::size_t l) {
    std::int64_t at = from.value;
    if (from.index >= 0)
      at += static_cast<std::int32_t>(s.warp.r[static_cast<std::size_t>(from.index)][l]);
    if (from.uniform >= 0)
      at += static_cast<std::int32_t>(s.warp.u[static_cast<std::size_t>(from.uniform)]);
    return at;
  };
  const Machine& m = s.machine;
  if (bytes == 8) {
    write_pair(s, dest,
               [&](std::size_t l) { return m.constant<std::uint64_t>(from.bank, place(l)); });
    return;
  }
  write(s, dest, [&](std::size_t l) -> std::uint32_t {
    if (bytes == 4) return m.constant<std::uint32_t>(from.bank, place(l));
    if (bytes == 2) {
      const auto half = m.constant<std::uint16_t>(from.bank, place(l));
      return s.in.has("S16") ? static_cast<std::uint32_t>(static_cast<std::int16_t>(half)) : half;
    }
    const auto byte = m.constant<std::uint8_t>(from.bank, place(l));
    return s.in.has("S8") ? static_cast<std::uint32_t>(static_cast<std::int8_t>(byte)) : byte;
  });
}

/// SHFL: a word of another lane.
inline void shuffle(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb, rc, result;
  const std::uint32_t* const value = ints(s, *p.source[0], ra);
  const std::uint32_t* const by = ints(s, *p.source[1], rb);
  const std::uint32_t* const form = ints(s, *p.source[2], rc);
  std::uint32_t valid = 0;
  for (std::uint32_t l = 0; l < kLanes; ++l) {
    const std::uint32_t clamp = form[l] & 31u, segment = form[l] >> 8 & 31u, n = by[l] & 31u;
    const std::uint32_t most = (l & segment) | (clamp & ~segment), least = l & segment;
    std::uint32_t from = l;
    bool inside = true;
    if (s.in.has("UP")) {
      inside = static_cast<int>(l) - static_cast<int>(n) >= static_cast<int>(most);
      from = l - n;
    } else if (s.in.has("DOWN")) {
      from = l + n;
      inside = from <= most;
    } else if (s.in.has("BFLY")) {
      from = l ^ n;
      inside = from <= most;
    } else {
      from = least | (n & ~segment);
      inside = from <= most;
    }
    if (inside) valid |= 1u << l;
    result[l] = value[inside ? from & 31u : l];
  }
  for (int i = 0; i < p.outs; ++i) set_predicate(s, p.out[i], valid);
  write(s, *p.dest, [&](std::size_t l) { return result[l]; });
}

/// S2R and CS2R: what a thread is.
inline void special_register(const Step& s) {
  const Operand& dest = s.in.operands[0];
  const std::string& name = s.in.operands[1].text;
  const auto first = static_cast<std::uint32_t>(s.warp.index * kLanes);
  const auto value = [&](std::size_t l) -> std::uint32_t {
    if (name == "SR_TID.X") return first + static_cast<std::uint32_t>(l);
    if (name == "SR_CTAID.X") return static_cast<std::uint32_t>(s.machine.block());
    if (name == "SR_LANEID") return static_cast<std::uint32_t>(l);
    if (name == "SR_SWINHI") return kSharedWindow;
    if (name == "SR_LTMASK") return (1u << l) - 1u;
    if (name == "SR_LEMASK") return (2u << l) - 1u;
    for (const char* zero :
         {"SRZ", "SR_CgaCtaId", "SR_TID.Y", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z"}) {
      if (name == zero) return 0;
    }
    throw SassError("unknown register " + name);
  };
  write(s, dest, value);
  if (s.in.name == "CS2R" && !s.in.has("32")) write(s, dest, value, 1);
}

}  // namespace dcls::cuda_sass::operation
