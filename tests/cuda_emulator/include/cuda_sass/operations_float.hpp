// The floating-point operations of SASS, and the conversions.
#pragma once

#include <cfenv>

#include "operations_integer.hpp"

namespace dcls::cuda_sass::operation {

/// The way of rounding that an instruction names.
inline int rounding(const Instruction& in) {
  if (in.has("RZ") || in.has("TRUNC")) return FE_TOWARDZERO;
  if (in.has("RM") || in.has("FLOOR")) return FE_DOWNWARD;
  if (in.has("RP") || in.has("CEIL")) return FE_UPWARD;
  return FE_TONEAREST;
}

/// Sets the host's rounding as long as it lives.
class Rounding {
 public:
  explicit Rounding(const Instruction& in) : changed_(rounding(in) != FE_TONEAREST) {
    if (changed_) std::fesetround(rounding(in));
  }
  ~Rounding() {
    if (changed_) std::fesetround(FE_TONEAREST);
  }
  Rounding(const Rounding&) = delete;
  Rounding& operator=(const Rounding&) = delete;

 private:
  bool changed_;
};

inline float flushed(const Instruction& in, float value) {
  if (in.has("FTZ") && std::fabs(value) < 1.17549435e-38f) value = std::copysign(0.0f, value);
  if (in.has("SAT")) value = value > 0.0f ? std::fmin(value, 1.0f) : 0.0f;
  return value;
}

template <typename Function>
void float_operation(const Step& s, int count, const Function& function) {
  const Parts p(s.in);
  Lanes room[3];
  const std::uint32_t* from[3] = {};
  for (int i = 0; i < count; ++i) from[i] = floats(s, *p.source[i], room[i]);
  const Rounding mode(s.in);
  const bool plain = s.in.modifiers.empty();
  write(s, *p.dest, [&](std::size_t l) {
    float x[3] = {};
    for (int i = 0; i < count; ++i) x[i] = bits_as<float>(from[i][l]);
    const volatile float value = function(x);
    return bits_as<std::uint32_t>(plain ? float{value} : flushed(s.in, value));
  });
}

inline void fma(const Step& s) {
  const Parts p(s.in);
  if (s.in.modifiers.empty() && s.lanes == ~0u) {  // most of what there is
    Lanes ra, rb, rc;
    const std::uint32_t* const a = floats(s, *p.source[0], ra);
    const std::uint32_t* const b = floats(s, *p.source[1], rb);
    const std::uint32_t* const c = floats(s, *p.source[2], rc);
    write(s, *p.dest, [&](std::size_t l) {
      return bits_as<std::uint32_t>(
          std::fma(bits_as<float>(a[l]), bits_as<float>(b[l]), bits_as<float>(c[l])));
    });
    return;
  }
  float_operation(s, 3, [](const float (&x)[3]) { return std::fma(x[0], x[1], x[2]); });
}
inline void add(const Step& s) {
  float_operation(s, 2, [](const float (&x)[3]) { return x[0] + x[1]; });
}
inline void multiply(const Step& s) {
  float_operation(s, 2, [](const float (&x)[3]) { return x[0] * x[1]; });
}

inline void compare_and_set_predicate(const Step& s) {
  const Parts p(s.in, false);
  Lanes ra, rb;
  const std::uint32_t* const a = floats(s, *p.source[0], ra);
  const std::uint32_t* const b = floats(s, *p.source[1], rb);
  const unsigned bits = comparison(s.in);
  finish_comparison(s, p, lanes_where(s.lanes, [&](std::size_t l) {
                      return compare(bits, bits_as<float>(a[l]), bits_as<float>(b[l]));
                    }));
}

inline void compare_and_set(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb;
  const std::uint32_t* const a = floats(s, *p.source[0], ra);
  const std::uint32_t* const b = floats(s, *p.source[1], rb);
  const std::uint32_t with = predicate(s, *p.in[0]);
  const unsigned bits = comparison(s.in);
  const bool either = s.in.has("OR");
  const std::uint32_t set = s.in.has("BF") ? bits_as<std::uint32_t>(1.0f) : ~0u;
  write(s, *p.dest, [&](std::size_t l) {
    const bool value = compare(bits, bits_as<float>(a[l]), bits_as<float>(b[l]));
    const bool other = (with >> l & 1u) != 0;
    return (either ? value || other : value && other) ? set : 0u;
  });
}

inline void float_extreme(const Step& s) {
  const Parts p(s.in);
  const std::uint32_t least = predicate(s, *p.in[0]);
  Lanes ra, rb;
  const std::uint32_t* const a = floats(s, *p.source[0], ra);
  const std::uint32_t* const b = floats(s, *p.source[1], rb);
  write(s, *p.dest, [&](std::size_t l) {
    const float x = bits_as<float>(a[l]), y = bits_as<float>(b[l]);
    if (s.in.has("NAN") && (std::isnan(x) || std::isnan(y))) return 0x7fffffffu;
    const float value = (least >> l & 1u) != 0 ? std::fmin(x, y) : std::fmax(x, y);
    return bits_as<std::uint32_t>(value);
  });
}

/// MUFU: here to the last bit, on a GPU to the last but one or so.
inline void special_function(const Step& s) {
  float_operation(s, 1, [&](const float (&x)[3]) -> float {
    const double v = x[0];
    const Instruction& in = s.in;
    const double result = in.has("RCP")    ? 1.0 / v
                          : in.has("RSQ")  ? 1.0 / std::sqrt(v)
                          : in.has("SQRT") ? std::sqrt(v)
                          : in.has("EX2")  ? std::exp2(v)
                          : in.has("LG2")  ? std::log2(v)
                          : in.has("SIN")  ? std::sin(v)
                          : in.has("COS")  ? std::cos(v)
                          : in.has("TANH") ? std::tanh(v)
                                           : throw SassError("unknown function");
    return static_cast<float>(result);
  });
}

/// FCHK: whether a division needs the slow path.
inline void check_division(const Step& s) {
  const Parts p(s.in, false);
  Lanes ra, rb;
  const std::uint32_t* const a = floats(s, *p.source[0], ra);
  const std::uint32_t* const b = floats(s, *p.source[1], rb);
  set_predicate(s, p.out[0], lanes_where(s.lanes, [&](std::size_t l) {
                  const int ea = static_cast<int>(a[l] >> 23 & 255u),
                            eb = static_cast<int>(b[l] >> 23 & 255u);
                  return eb == 0 || eb >= 253 || ea == 255 || ea - eb > 125 || ea - eb < -125 ||
                         ea < 25;
                }));
}

inline void round_to_integer(const Step& s) {
  float_operation(s, 1, [](const float (&x)[3]) { return std::nearbyint(x[0]); });
}

inline void integer_to_float(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb;
  const bool wide = s.in.has("S64") || s.in.has("U64");
  const bool is_unsigned = s.in.has("U64") || s.in.has("U32") || s.in.has("U16") || s.in.has("U8");
  const std::uint32_t* const low = ints(s, *p.source[0], ra);
  const std::uint32_t* const high = wide ? ints(s, *p.source[0], rb, 1) : low;
  const Rounding mode(s.in);
  write(s, *p.dest, [&](std::size_t l) {
    volatile float value = 0;
    std::uint32_t word = low[l];
    if (s.in.has("U16")) word &= 0xffffu;
    if (s.in.has("U8")) word &= 0xffu;
    if (s.in.has("S16")) word = static_cast<std::uint32_t>(static_cast<std::int16_t>(word));
    if (s.in.has("S8")) word = static_cast<std::uint32_t>(static_cast<std::int8_t>(word));
    if (wide && is_unsigned) {
      value = static_cast<float>(pair(low, high, l));
    } else if (wide) {
      value = static_cast<float>(static_cast<std::int64_t>(pair(low, high, l)));
    } else if (is_unsigned) {
      value = static_cast<float>(word);
    } else {
      value = static_cast<float>(static_cast<std::int32_t>(word));
    }
    return bits_as<std::uint32_t>(float{value});
  });
}

template <typename T>
T saturated(double value) {
  if (std::isnan(value)) return 0;
  if (value <= static_cast<double>(std::numeric_limits<T>::min())) {
    return std::numeric_limits<T>::min();
  }
  if (value >= static_cast<double>(std::numeric_limits<T>::max())) {
    return std::numeric_limits<T>::max();
  }
  return static_cast<T>(value);
}

inline void float_to_integer(const Step& s) {
  const Parts p(s.in);
  Lanes room;
  const std::uint32_t* const a = floats(s, *p.source[0], room);
  const auto value = [&](std::size_t l) {
    const Rounding mode(s.in);
    const volatile double x = bits_as<float>(a[l]);
    return std::nearbyint(x);
  };
  if (s.in.has("S64")) {
    write_pair(s, *p.dest, [&](std::size_t l) {
      return static_cast<std::uint64_t>(saturated<std::int64_t>(value(l)));
    });
  } else if (s.in.has("U64")) {
    write_pair(s, *p.dest, [&](std::size_t l) { return saturated<std::uint64_t>(value(l)); });
  } else if (s.in.has("U32")) {
    write(s, *p.dest, [&](std::size_t l) { return saturated<std::uint32_t>(value(l)); });
  } else {
    write(s, *p.dest, [&](std::size_t l) {
      return static_cast<std::uint32_t>(saturated<std::int32_t>(value(l)));
    });
  }
}

inline void float_to_float(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb;
  const std::uint32_t* const low = raw(s, *p.source[0], ra);
  if (s.in.has("F32") && s.in.has("F64") && s.in.modifiers[0] == "F32") {
    const std::uint32_t* const high = raw(s, *p.source[0], rb, 1);
    write(s, *p.dest, [&](std::size_t l) {
      return bits_as<std::uint32_t>(static_cast<float>(bits_as<double>(pair(low, high, l))));
    });
  } else if (s.in.modifiers[0] == "F64") {
    write_pair(s, *p.dest, [&](std::size_t l) {
      return bits_as<std::uint64_t>(static_cast<double>(bits_as<float>(low[l])));
    });
  } else {
    throw SassError("unknown conversion");
  }
}

inline std::uint32_t to_half(const Instruction& in, float value) {
  return in.has("BF16") || in.has("BF16_V2") ? float_to_bfloat(value) : float_to_half(value);
}

/// F2FP: two floats as a pair of halves.
inline void pack_halves(const Step& s) {
  const Parts p(s.in);
  Lanes ra, rb;
  const std::uint32_t* const a = floats(s, *p.source[0], ra);
  const std::uint32_t* const b = floats(s, *p.source[1], rb);
  write(s, *p.dest, [&](std::size_t l) {
    return to_half(s.in, bits_as<float>(a[l])) << 16 | to_half(s.in, bits_as<float>(b[l]));
  });
}

/// One half of an operand of HADD2, HMUL2 and HFMA2, as a float.
inline float half_of(const Step& s, const Operand& o, const std::uint32_t* words, std::size_t lane,
                     int which) {
  if (o.text.find("H0_H0") != std::string::npos) which = 0;
  if (o.text.find("H1_H1") != std::string::npos) which = 1;
  const auto bits = static_cast<std::uint16_t>(words[lane] >> (16 * which));
  float value =
      s.in.has("BF16_V2") || s.in.has("BF16") ? bfloat_to_float(bits) : half_to_float(bits);
  if (o.absolute) value = std::fabs(value);
  return o.minus ? -value : value;
}

/// The operations on pairs of halves; a number takes two operands, the upper half first.
inline void on_halves(const Step& s) {
  const Parts p(s.in);
  const bool fused = s.in.name == "HFMA2", product = s.in.name == "HMUL2";
  const std::size_t count = fused ? 3 : 2;
  Operand operand[3];
  std::size_t n = 0;
  for (int i = 0; i < p.sources && n < count; ++i) {
    operand[n] = *p.source[i];
    if (operand[n].kind == Kind::kNumber && i + 1 < p.sources &&
        p.source[i + 1]->kind == Kind::kNumber) {
      const std::uint32_t upper = to_half(s.in, static_cast<float>(operand[n].number));
      operand[n].value = static_cast<std::int64_t>(
          upper << 16 | to_half(s.in, static_cast<float>(p.source[++i]->number)));
      operand[n].decimal = false;
    }
    ++n;
  }
  Lanes room[3];
  const std::uint32_t* from[3] = {};
  for (std::size_t i = 0; i < n; ++i) from[i] = raw(s, operand[i], room[i]);
  const bool to_float = s.in.has("F32") && s.in.name == "HADD2";
  write(s, *p.dest, [&](std::size_t l) {
    std::uint32_t halves[2];
    for (int h = 0; h < 2; ++h) {
      float x[3] = {};
      for (std::size_t i = 0; i < n; ++i) x[i] = half_of(s, operand[i], from[i], l, h);
      const float value = fused ? std::fma(x[0], x[1], x[2]) : product ? x[0] * x[1] : x[0] + x[1];
      if (to_float) return bits_as<std::uint32_t>(value);
      halves[h] = to_half(s.in, value);
    }
    return halves[1] << 16 | halves[0];
  });
}

}  // namespace dcls::cuda_sass::operation
