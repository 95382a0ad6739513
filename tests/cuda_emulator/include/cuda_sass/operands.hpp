// How the operations of SASS read and write registers, predicates, constants and numbers.
#pragma once

#include <cmath>
#include <cstring>

#include "machine.hpp"

namespace dcls::cuda_sass {

using Step = Machine::Step;

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename Function>
void for_lanes(std::uint32_t lanes, const Function& function) {
  for (; lanes != 0; lanes &= lanes - 1) function(static_cast<std::size_t>(__builtin_ctz(lanes)));
}

/// The parts of an instruction: what it writes, then what it reads.
struct Parts {
  const Operand* dest = nullptr;
  const Operand* out[2] = {};  ///< predicates
  const Operand* source[5] = {};
  const Operand* in[3] = {};  ///< predicates
  int outs = 0, sources = 0, ins = 0;

  explicit Parts(const Instruction& in_, bool has_dest = true) {
    for (const Operand& o : in_.operands) {
      const bool predicate = o.kind == Kind::kPredicate || o.kind == Kind::kUniformPredicate;
      const bool leading = sources == 0;
      if (predicate && leading && outs < 2) {
        out[outs++] = &o;
      } else if (predicate) {
        if (ins < 3) in[ins++] = &o;
      } else if (has_dest && dest == nullptr) {
        dest = &o;
      } else if (sources < 5) {
        source[sources++] = &o;
      }
    }
  }
};

inline std::uint32_t predicate(const Step& s, const Operand& o) {
  const auto i = static_cast<std::size_t>(o.index);
  const std::uint32_t value =
      o.kind == Kind::kUniformPredicate ? (s.warp.up[i] ? ~0u : 0u) : s.warp.p[i];
  return o.inverted ? ~value : value;
}

inline void set_predicate(const Step& s, const Operand* o, std::uint32_t value) {
  if (o == nullptr || o->index == kTrue) return;
  const auto i = static_cast<std::size_t>(o->index);
  if (o->kind == Kind::kUniformPredicate) {
    s.warp.up[i] = (value & s.lanes) != 0;
  } else {
    s.warp.p[i] = (s.warp.p[i] & ~s.lanes) | (value & s.lanes);
  }
}

inline std::uint32_t float_bits(const Operand& o) {
  return o.decimal ? bits_as<std::uint32_t>(static_cast<float>(o.number))
                   : static_cast<std::uint32_t>(o.value);
}

/// The word of an operand in each lane, without its signs. `next` is 1 for the second of a pair.
inline const std::uint32_t* raw(const Step& s, const Operand& o, Lanes& room, int next = 0,
                                bool of_float = false) {
  std::uint32_t same = 0;
  switch (o.kind) {
    case Kind::kRegister:
      return s.warp.r[static_cast<std::size_t>(o.index == kZeroRegister ? o.index : o.index + next)]
          .data();
    case Kind::kUniform:
      same = s.warp.u[static_cast<std::size_t>(o.index == kZeroUniform ? o.index : o.index + next)];
      break;
    case Kind::kNumber:
      if (of_float) {
        same = float_bits(o);
      } else if (next == 0) {
        same = static_cast<std::uint32_t>(o.value);
      } else {
        same = o.value < 0 ? ~0u : 0u;
      }
      break;
    case Kind::kConstant: {
      const std::int64_t at = o.value + 4 * next;
      if (o.uniform >= 0) {
        same = s.machine.constant<std::uint32_t>(
            o.bank, at + s.warp.u[static_cast<std::size_t>(o.uniform)]);
      } else {
        same = s.machine.constant<std::uint32_t>(o.bank, at);
      }
      break;
    }
    default: throw SassError("operand " + o.text + " has no value");
  }
  room.fill(same);
  return room.data();
}

inline const std::uint32_t* ints(const Step& s, const Operand& o, Lanes& room, int next = 0) {
  const std::uint32_t* const from = raw(s, o, room, next);
  if (!o.minus && !o.inverted && !o.absolute) return from;
  for (std::size_t i = 0; i < kLanes; ++i) {
    std::uint32_t v = from[i];
    if (o.absolute && (v >> 31) != 0) v = 0u - v;
    if (o.inverted) v = ~v;
    room[i] = o.minus ? 0u - v : v;
  }
  return room.data();
}

inline const std::uint32_t* floats(const Step& s, const Operand& o, Lanes& room) {
  const std::uint32_t* const from = raw(s, o, room, 0, true);
  if (!o.minus && !o.absolute) return from;
  for (std::size_t i = 0; i < kLanes; ++i) {
    std::uint32_t v = from[i];
    if (o.absolute) v &= 0x7fffffffu;
    room[i] = o.minus ? v ^ 0x80000000u : v;
  }
  return room.data();
}

inline std::uint64_t pair(const std::uint32_t* low, const std::uint32_t* high, std::size_t lane) {
  return static_cast<std::uint64_t>(high[lane]) << 32 | low[lane];
}

/// Writes the lanes of a word; the second one of a pair with `next`.
template <typename Value>
void write(const Step& s, const Operand& o, const Value& value, int next = 0) {
  if (o.kind == Kind::kUniform) {
    if (o.index == kZeroUniform) return;
    s.warp.u[static_cast<std::size_t>(o.index + next)] =
        value(static_cast<std::size_t>(__builtin_ctz(s.lanes)));
    return;
  }
  if (o.kind != Kind::kRegister) throw SassError("cannot write to " + o.text);
  Lanes& to = s.warp.r[static_cast<std::size_t>(o.index == kZeroRegister ? 256 : o.index + next)];
  if (s.lanes == ~0u) {
    for (std::size_t i = 0; i < kLanes; ++i) to[i] = value(i);
  } else {
    for_lanes(s.lanes, [&](std::size_t i) { to[i] = value(i); });
  }
}

template <typename Value>
void write_pair(const Step& s, const Operand& o, const Value& value) {
  std::array<std::uint64_t, kLanes> result{};
  for_lanes(s.lanes, [&](std::size_t i) { result[i] = value(i); });
  write(s, o, [&](std::size_t i) { return static_cast<std::uint32_t>(result[i]); });
  write(s, o, [&](std::size_t i) { return static_cast<std::uint32_t>(result[i] >> 32); }, 1);
}

/// The lanes for which a condition holds.
template <typename Condition>
std::uint32_t lanes_where(std::uint32_t lanes, const Condition& condition) {
  std::uint32_t result = 0;
  for_lanes(lanes, [&](std::size_t i) {
    if (condition(i)) result |= 1u << i;
  });
  return result;
}

inline float half_to_float(std::uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float value = exponent == 0    ? std::ldexp(static_cast<float>(mantissa), -24)
                : exponent == 31 ? (mantissa == 0 ? INFINITY : NAN)
                                 : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return (h >> 15) != 0 ? -value : value;
}

/// To the nearest half, ties to even.
inline std::uint16_t float_to_half(float value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < std::ldexp(1.0f, -14)) {
    return static_cast<std::uint16_t>(sign |
                                      static_cast<int>(std::nearbyint(std::ldexp(size, 24))));
  }
  int exponent = 0;
  const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));
  return static_cast<std::uint16_t>(sign | (((exponent + 13) << 10) + mantissa));
}

inline float bfloat_to_float(std::uint16_t b) {
  return bits_as<float>(static_cast<std::uint32_t>(b) << 16);
}

inline std::uint16_t float_to_bfloat(float value) {
  const auto bits = bits_as<std::uint32_t>(value);
  if (std::isnan(value)) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

}  // namespace dcls::cuda_sass
