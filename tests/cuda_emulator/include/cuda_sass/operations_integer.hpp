// The integer operations of SASS, and those on bits and predicates.
#pragma once

#include "operands.hpp"

namespace dcls::cuda_sass::operation {

inline void add3(const Step& s) {
  const Parts p(s.in);
  const bool extended = s.in.has("X");
  Lanes room[3];
  const std::uint32_t* from[3] = {};
  std::uint64_t carry_of_minus = 0;
  Operand bare[3];
  for (int i = 0; i < p.sources && i < 3; ++i) {
    bare[i] = *p.source[i];
    if (bare[i].minus && bare[i].kind != Kind::kNumber) {  // -x is ~x + 1, which may carry
      bare[i].minus = false;
      bare[i].inverted = true;
      ++carry_of_minus;
    }
    from[i] = ints(s, bare[i], room[i]);
  }
  std::array<std::uint64_t, kLanes> sum;
  sum.fill(extended ? 0 : carry_of_minus);
  for (int i = 0; i < p.sources && i < 3; ++i) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += from[i][lane];
  }
  for (int i = 0; extended && i < p.ins; ++i) {
    const std::uint32_t carry = predicate(s, *p.in[i]);
    for (std::size_t lane = 0; lane < kLanes; ++lane) sum[lane] += carry >> lane & 1u;
  }
  for (int i = 0; i < p.outs; ++i) {
    const auto least = static_cast<std::uint64_t>(i + 1);
    set_predicate(s, p.out[i],
                  lanes_where(s.lanes, [&](std::size_t l) { return sum[l] >> 32 >= least; }));
  }
  write(s, *p.dest, [&](std::size_t l) { return static_cast<std::uint32_t>(sum[l]); });
}

/// IMAD in all its forms: low word, high word, or both. Modifiers such as MOV and SHL name special
/// cases for the reader, and change nothing.
inline void multiply_add(const Step& s) {
  const Parts p(s.in);
  const bool is_signed = !s.in.has("U32"), wide = s.in.has("WIDE"), high = s.in.has("HI");
  Lanes ra, rb, rc, rd;
  Operand factor = *p.source[0], other = *p.source[1], addend = *p.source[2];
  const bool minus = factor.minus != other.minus;
  factor.minus = other.minus = false;
  const std::uint32_t* const a = ints(s, factor, ra);
  const std::uint32_t* const b = ints(s, other, rb);
  const bool extended = s.in.has("X");
  const std::uint32_t carry_in = extended && p.ins > 0 ? predicate(s, *p.in[0]) : 0;
  if (!wide && !high) {
    const std::uint32_t* const c = ints(s, addend, rc);
    if (p.outs > 0) throw SassError("carry of a low product");
    write(s, *p.dest, [&](std::size_t l) {
      const std::uint32_t product = a[l] * b[l];
      return (minus ? 0u - product : product) + c[l] + (carry_in >> l & 1u);
    });
    return;
  }
  const bool subtract = addend.minus;
  addend.minus = false;
  const std::uint32_t* const low = ints(s, addend, rc);
  const std::uint32_t* const upper = ints(s, addend, rd, 1);
  std::array<std::uint64_t, kLanes> result{};
  std::uint32_t carry = 0;
  for_lanes(s.lanes, [&](std::size_t l) {
    std::uint64_t product = is_signed
                                ? static_cast<std::uint64_t>(
                                      static_cast<std::int64_t>(static_cast<std::int32_t>(a[l])) *
                                      static_cast<std::int32_t>(b[l]))
                                : static_cast<std::uint64_t>(a[l]) * b[l];
    if (minus) product = 0u - product;
    std::uint64_t c = pair(low, upper, l);
    if (subtract) c = 0u - c;
    std::uint64_t sum = product + c;
    bool carried = sum < product;
    if ((carry_in >> l & 1u) != 0) carried = ++sum == 0 || carried;
    if (carried) carry |= 1u << l;
    result[l] = sum;
  });
  for (int i = 0; i < p.outs; ++i) set_predicate(s, p.out[i], carry);
  if (wide) {
    write_pair(s, *p.dest, [&](std::size_t l) { return result[l]; });
  } else {
    write(s, *p.dest, [&](std::size_t l) { return static_cast<std::uint32_t>(result[l] >> 32); });
  }
}

/// (a << n) + b, or the upper half of that of a pair.
inline void shift_add(const Step& s) {
  const Parts p(s.in);
  const bool high = s.in.has("HI"), extended = s.in.has("X"), from_sign = s.in.has("SX32");
  const int last = p.sources - 1;
  const auto shift = static_cast<int>(p.source[last]->value);
  Lanes ra, rb, rc;
  Operand a_bare = *p.source[0];
  const bool minus = a_bare.minus;
  a_bare.minus = false;
  const std::uint32_t* const a = ints(s, a_bare, ra);
  const std::uint32_t* const b = ints(s, *p.source[1], rb);
  const std::uint32_t* const c = high && !from_sign ? ints(s, *p.source[2], rc) : nullptr;
  const std::uint32_t carry_in = extended && p.ins > 0 ? predicate(s, *p.in[0]) : 0;
  std::array<std::uint64_t, kLanes> sum;
  for (std::size_t l = 0; l < kLanes; ++l) {
    std::uint64_t value = a[l];
    if (c != nullptr) value |= static_cast<std::uint64_t>(c[l]) << 32;
    if (from_sign) {
      value =
          static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int32_t>(a[l])));
    }
    value <<= shift;
    auto word = static_cast<std::uint32_t>(high ? value >> 32 : value);
    sum[l] = std::uint64_t{minus ? ~word : word} + (minus && !extended ? 1u : 0u) + b[l] +
             (carry_in >> l & 1u);
  }
  for (int i = 0; i < p.outs; ++i) {
    set_predicate(s, p.out[i],
                  lanes_where(s.lanes, [&](std::size_t l) { return sum[l] >> 32 != 0; }));
  }
  write(s, *p.dest, [&](std::size_t l) { return static_cast<std::uint32_t>(sum[l]); });
}

inline void shift(const Step& s) {
  const Parts p(s.in);
  const bool left = s.in.has("L"), high = s.in.has("HI"), wrap = s.in.has("W");
  const bool is_signed = s.in.has("S32") || s.in.has("S64");
  const bool wide = s.in.has("U64") || s.in.has("S64");
  Lanes ra, rb, rc;
  const std::uint32_t* const low = ints(s, *p.source[0], ra);
  const std::uint32_t* const by = ints(s, *p.source[1], rb);
  const std::uint32_t* const upper = ints(s, *p.source[2], rc);
  const unsigned bits = wide ? 64 : 32;
  write(s, *p.dest, [&](std::size_t l) -> std::uint32_t {
    unsigned n = wrap ? by[l] % bits : std::min(by[l], bits);
    std::uint64_t value = pair(low, upper, l);
    if (left) {
      value = n >= 64 ? 0 : value << n;
      return static_cast<std::uint32_t>(high ? value >> 32 : value);
    }
    const auto as_signed = static_cast<std::int64_t>(value);
    if (n >= 64) {
      value = is_signed && as_signed < 0 ? ~std::uint64_t{0} : 0;
    } else {
      value = is_signed ? static_cast<std::uint64_t>(as_signed >> n) : value >> n;
    }
    return static_cast<std::uint32_t>(high ? value >> 32 : value);
  });
}

/// Each bit of the result is that of a table, at the bits of three values.
inline void logic3(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb, rc;
  const std::uint32_t* const a = ints(s, *p.source[0], ra);
  const std::uint32_t* const b = ints(s, *p.source[1], rb);
  const std::uint32_t* const c = ints(s, *p.source[2], rc);
  const auto table = static_cast<unsigned>(p.source[3]->value);
  Lanes result;
  for (std::size_t l = 0; l < kLanes; ++l) {
    std::uint32_t value = 0;
    for (unsigned i = 0; i < 8; ++i) {
      if ((table >> i & 1u) == 0) continue;
      value |= ((i & 4u) != 0 ? a[l] : ~a[l]) & ((i & 2u) != 0 ? b[l] : ~b[l]) &
               ((i & 1u) != 0 ? c[l] : ~c[l]);
    }
    result[l] = value;
  }
  const std::uint32_t also = p.ins > 0 ? predicate(s, *p.in[0]) : 0;
  for (int i = 0; i < p.outs; ++i) {
    set_predicate(s, p.out[i],
                  lanes_where(s.lanes, [&](std::size_t l) { return result[l] != 0; }) | also);
  }
  write(s, *p.dest, [&](std::size_t l) { return result[l]; });
}

inline void predicate_logic(const Step& s) {
  const std::vector<Operand>& o = s.in.operands;
  if (o.size() != 7) throw SassError("PLOP3 of " + std::to_string(o.size()) + " operands");
  const std::uint32_t a = predicate(s, o[2]), b = predicate(s, o[3]), c = predicate(s, o[4]);
  const auto value = [&](std::int64_t table) {
    std::uint32_t result = 0;
    for (unsigned i = 0; i < 8; ++i) {
      if ((table >> i & 1) == 0) continue;
      result |= ((i & 4u) != 0 ? a : ~a) & ((i & 2u) != 0 ? b : ~b) & ((i & 1u) != 0 ? c : ~c);
    }
    return result;
  };
  const std::uint32_t first = value(o[5].value), second = value(o[6].value);
  set_predicate(s, &o[0], first);
  set_predicate(s, &o[1], second);
}

/// Combines a comparison with the predicates before it, and writes it and its inverse.
inline void finish_comparison(const Step& s, const Parts& p, std::uint32_t value) {
  const std::uint32_t with = p.ins > 0 ? predicate(s, *p.in[0]) : ~0u;
  const auto combine = [&](std::uint32_t v) {
    return s.in.has("OR") ? v | with : s.in.has("XOR") ? v ^ with : v & with;
  };
  set_predicate(s, p.out[0], combine(value));
  if (p.outs > 1) set_predicate(s, p.out[1], combine(~value));
}

/// What an instruction compares for: bits for less, equal, greater, and unordered.
inline unsigned comparison(const Instruction& in) {
  struct Name {
    const char* text;
    unsigned bits;
  };
  for (const Name& n :
       {Name{"LT", 1}, Name{"EQ", 2}, Name{"LE", 3}, Name{"GT", 4}, Name{"NE", 5}, Name{"GE", 6},
        Name{"NUM", 7}, Name{"NAN", 8}, Name{"LTU", 9}, Name{"EQU", 10}, Name{"LEU", 11},
        Name{"GTU", 12}, Name{"NEU", 13}, Name{"GEU", 14}, Name{"T", 15}, Name{"F", 0}}) {
    if (in.has(n.text)) return n.bits;
  }
  throw SassError("unknown comparison");
}

template <typename T>
bool compare(unsigned bits, T a, T b) {
  const unsigned order = a < b ? 1 : a == b ? 2 : a > b ? 4 : 8;
  return (bits & order) != 0;
}

inline void compare_integers(const Step& s) {
  const Parts p(s.in, false);
  const bool is_unsigned = s.in.has("U32"), extended = s.in.has("EX");
  Lanes ra, rb;
  const std::uint32_t* const a = ints(s, *p.source[0], ra);
  const std::uint32_t* const b = ints(s, *p.source[1], rb);
  const std::uint32_t lower = extended ? predicate(s, *p.in[1]) : 0;
  const unsigned bits = comparison(s.in);
  const bool differs = s.in.has("NE");
  finish_comparison(s, p, lanes_where(s.lanes, [&](std::size_t l) {
                      if (extended && a[l] == b[l]) return (lower >> l & 1u) != 0;
                      if (extended && differs) return true;
                      if (is_unsigned) return compare(bits, a[l], b[l]);
                      return compare(bits, static_cast<std::int32_t>(a[l]),
                                     static_cast<std::int32_t>(b[l]));
                    }));
}

/// VIMNMX, VIADDMNMX, IMNMX: the smaller value where the predicate holds.
inline void integer_extreme(const Step& s) {
  const Parts p(s.in);
  Lanes room[3];
  const bool sums = s.in.name == "VIADDMNMX";
  const std::uint32_t* const a = ints(s, *p.source[0], room[0]);
  const std::uint32_t* const b = ints(s, *p.source[1], room[1]);
  const std::uint32_t* const c = sums ? ints(s, *p.source[2], room[2]) : b;
  const std::uint32_t least = predicate(s, *p.in[0]);
  const bool is_unsigned = s.in.has("U32");
  write(s, *p.dest, [&](std::size_t l) {
    const std::uint32_t x = sums ? a[l] + b[l] : a[l];
    const bool smaller =
        is_unsigned ? x < c[l] : static_cast<std::int32_t>(x) < static_cast<std::int32_t>(c[l]);
    return smaller == ((least >> l & 1u) != 0) ? x : c[l];
  });
}

inline void absolute(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  write(s, *p.dest, [&](std::size_t l) { return (a[l] >> 31) != 0 ? 0u - a[l] : a[l]; });
}

inline void move(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  write(s, *p.dest, [&](std::size_t l) { return a[l]; });
}

/// R2UR: the value of the first lane.
inline void to_uniform(const Step& s) { move(s); }

inline void select(const Step& s) {
  const Parts p(s.in);
  const bool of_floats = s.in.name == "FSEL";
  Lanes ra, rb;
  const std::uint32_t* const a =
      of_floats ? floats(s, *p.source[0], ra) : ints(s, *p.source[0], ra);
  const std::uint32_t* const b =
      of_floats ? floats(s, *p.source[1], rb) : ints(s, *p.source[1], rb);
  const std::uint32_t first = predicate(s, *p.in[0]);
  write(s, *p.dest, [&](std::size_t l) { return (first >> l & 1u) != 0 ? a[l] : b[l]; });
}

inline void permute(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb, rc;
  const std::uint32_t* const a = ints(s, *p.source[0], ra);
  const std::uint32_t* const which = ints(s, *p.source[1], rb);
  const std::uint32_t* const b = ints(s, *p.source[2], rc);
  write(s, *p.dest, [&](std::size_t l) {
    const std::uint64_t bytes = pair(a, b, l);
    std::uint32_t value = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned pick = which[l] >> (4 * i) & 15u;
      auto byte = static_cast<std::uint32_t>(bytes >> (8 * (pick & 7u)) & 255u);
      if ((pick & 8u) != 0) byte = (byte >> 7) != 0 ? 255u : 0u;
      value |= byte << (8 * i);
    }
    return value;
  });
}

inline void count_bits(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  write(s, *p.dest,
        [&](std::size_t l) { return static_cast<std::uint32_t>(__builtin_popcount(a[l])); });
}

inline void highest_bit(const Step& s) {
  const Parts p(s.in);
  const bool distance = s.in.has("SH");
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  write(s, *p.dest, [&](std::size_t l) {
    const std::uint32_t v = !s.in.has("U32") && (a[l] >> 31) != 0 ? ~a[l] : a[l];
    if (v == 0) return ~0u;
    const auto zeros = static_cast<std::uint32_t>(__builtin_clz(v));
    return distance ? zeros : 31u - zeros;
  });
}

inline void reverse_bits(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  write(s, *p.dest, [&](std::size_t l) {
    std::uint32_t v = 0;
    for (unsigned i = 0; i < 32; ++i) v |= (a[l] >> i & 1u) << (31 - i);
    return v;
  });
}

/// VOTE: the lanes whose predicate holds, and whether there are any, or it holds in all.
inline void vote(const Step& s) {
  const Operand *dest = nullptr, *out = nullptr, *in = nullptr;
  for (const Operand& o : s.in.operands) {
    if (o.kind == Kind::kRegister || o.kind == Kind::kUniform) {
      dest = &o;
    } else if (&o == &s.in.operands.back()) {
      in = &o;
    } else {
      out = &o;
    }
  }
  // A vote of the uniform path counts the lanes that are there, although it has one result.
  const std::uint32_t here = predicate(s, *in) & s.group.lanes;
  const bool holds = s.in.has("ALL") ? here == s.group.lanes : here != 0;
  if (dest != nullptr) write(s, *dest, [&](std::size_t) { return here; });
  set_predicate(s, out, holds ? ~0u : 0u);
}

/// The predicates of a mask from the bits of a register, or the other way round.
inline void predicates_from_register(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = ints(s, *p.source[0], room);
  const auto mask = static_cast<unsigned>(p.source[1]->value);
  const bool uniform = p.dest->kind == Kind::kUniformPredicates;
  for (int i = 0; i < kTrue; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    Operand to;
    to.kind = uniform ? Kind::kUniformPredicate : Kind::kPredicate;
    to.index = i;
    set_predicate(s, &to,
                  lanes_where(s.lanes, [&](std::size_t l) { return (a[l] >> i & 1u) != 0; }));
  }
}
inline void register_from_predicates(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const bool uniform = p.source[0]->kind == Kind::kUniformPredicates;
  const std::uint32_t* const a = ints(s, *p.source[1], room);
  const auto mask = static_cast<unsigned>(p.source[2]->value);
  write(s, *p.dest, [&](std::size_t l) {
    std::uint32_t value = a[l] & ~mask;
    for (std::size_t i = 0; i < kTrue; ++i) {
      const bool set = uniform ? s.warp.up[i] : (s.warp.p[i] >> l & 1u) != 0;
      if (set && (mask >> i & 1u) != 0) value |= 1u << i;
    }
    return value;
  });
}

}  // namespace dcls::cuda_sass::operation
