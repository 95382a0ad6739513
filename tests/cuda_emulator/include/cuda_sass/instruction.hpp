// One instruction of SASS, NVIDIA's machine code, as nvdisasm prints it.
#pragma once

#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace dcls::cuda_sass {

/// Text that is not as nvdisasm prints it, or an instruction that is not known here.
struct SassError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline constexpr int kZeroRegister = 255, kZeroUniform = 63, kTrue = 7;

enum class Kind : std::uint8_t {
  kRegister,
  kUniform,
  kPredicate,
  kUniformPredicate,
  kPredicates,         // PR
  kUniformPredicates,  // UPR
  kNumber,
  kConstant,  // c[bank][register + value]
  kAddress,   // [register + uniform + value]
  kLabel,
  kBarrier,  // B0
  kOther     // a special register, a scoreboard
};

struct Operand {
  Kind kind = Kind::kOther;
  int index = -1;  ///< of the register; in an address and a constant that of its base, -1 for none
  int uniform = -1;       ///< in an address: the uniform register that is added, -1 for none
  int bank = 0;           ///< of a constant
  int scale = 1;          ///< of the base of an address
  bool wide = false;      ///< the base of an address is a pair of registers
  bool minus = false;     ///< -x
  bool absolute = false;  ///< |x|
  bool inverted = false;  ///< ~x of a register, !x of a predicate
  bool decimal = false;   ///< a number that is not written in hexadecimal: of floating point
  std::int64_t value = 0;
  double number = 0;
  std::string text;  ///< of a label, a special register; else the suffixes such as .H0_H0
};

namespace detail {

inline bool starts(std::string_view text, std::string_view with) {
  return text.substr(0, with.size()) == with;
}
inline std::string_view trim(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) {
    text.remove_prefix(1);
  }
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) {
    text.remove_suffix(1);
  }
  return text;
}

/// Parts of a text at `by`, but not at those inside of brackets.
inline std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    const char c = i < text.size() ? text[i] : by;
    if (c == '[' || c == '(') ++depth;
    if (c == ']' || c == ')') --depth;
    if (i < text.size() && (c != by || depth > 0)) continue;
    parts.push_back(trim(text.substr(begin, i - begin)));
    begin = i + 1;
  }
  if (parts.size() == 1 && parts[0].empty()) parts.clear();
  return parts;
}

inline std::int64_t integer(std::string_view text) {
  const std::string copy(text);
  const bool minus = copy[0] == '-';
  const auto value =
      static_cast<std::int64_t>(std::strtoull(copy.c_str() + (minus ? 1 : 0), nullptr, 16));
  return minus ? -value : value;
}

/// The number of a register such as R12, or `zero` for RZ; -1 if it is none.
inline int register_index(std::string_view text, std::string_view letters, int zero) {
  if (!starts(text, letters)) return -1;
  const std::string rest(text.substr(letters.size()));
  if (rest == "Z" || rest == "T") return zero;
  if (rest.empty() || rest.find_first_not_of("0123456789") != std::string::npos) return -1;
  return std::atoi(rest.c_str());
}

/// What stands in brackets: R4.64+UR6+0x10, in any part.
inline void parse_address(std::string_view inside, Operand& to) {
  std::string text(inside);
  for (std::size_t at = 1; (at = text.find('-', at)) != std::string::npos; at += 2) {
    text.insert(at, "+");  // a difference is the sum with a negative number
  }
  for (const std::string_view part : split(text, '+')) {
    if (part.empty()) continue;
    const std::vector<std::string_view> pieces = split(part, '.');
    const int uniform = register_index(pieces[0], "UR", kZeroUniform);
    const int base = register_index(pieces[0], "R", kZeroRegister);
    if (uniform >= 0) {
      to.uniform = uniform;
    } else if (base >= 0) {
      to.index = base;
    } else {
      to.value += integer(part);
      continue;
    }
    for (std::size_t i = 1; i < pieces.size(); ++i) {
      if (pieces[i] == "64") to.wide = true;
      if (starts(pieces[i], "X")) to.scale = std::atoi(std::string(pieces[i].substr(1)).c_str());
    }
  }
}

inline Operand parse_operand(std::string_view text) {
  Operand o;
  const std::string whole(text);
  if (starts(text, "`(")) {
    o.kind = Kind::kLabel;
    o.text = std::string(text.substr(2, text.size() - 3));
    return o;
  }
  const bool digit = text.size() > 1 && (text[0] == '-' || text[0] == '+')
                         ? std::isdigit(static_cast<unsigned char>(text[1])) != 0
                         : std::isdigit(static_cast<unsigned char>(text[0])) != 0;
  if (digit || whole.find("INF") != std::string::npos || whole.find("QNAN") != std::string::npos) {
    o.kind = Kind::kNumber;
    o.decimal = whole.find("0x") == std::string::npos;
    if (!o.decimal) {
      o.value = integer(text);
    } else if (digit) {
      o.number = std::strtod(whole.c_str(), nullptr);
      o.value = static_cast<std::int64_t>(o.number);
    } else {
      o.number = whole.find("INF") != std::string::npos ? std::numeric_limits<double>::infinity()
                                                        : std::numeric_limits<double>::quiet_NaN();
      if (text[0] == '-') o.number = -o.number;
    }
    return o;
  }
  while (!text.empty() && (text[0] == '-' || text[0] == '~' || text[0] == '!' || text[0] == '+')) {
    o.minus = o.minus || text[0] == '-';
    o.inverted = o.inverted || text[0] == '~' || text[0] == '!';
    text.remove_prefix(1);
  }
  if (starts(text, "|")) {
    o.absolute = true;
    const std::size_t end = text.find('|', 1);
    const std::string bare =
        std::string(text.substr(1, end - 1)) + std::string(text.substr(end + 1));
    Operand inner = parse_operand(bare);
    inner.absolute = true;
    inner.minus = o.minus;
    return inner;
  }
  if (starts(text, "desc[")) text.remove_prefix(text.find(']') + 1);
  if (starts(text, "c[") || starts(text, "cx[")) {
    o.kind = Kind::kConstant;
    const std::size_t end = text.find(']');
    o.bank = static_cast<int>(integer(text.substr(2, end - 2)));
    parse_address(text.substr(end + 2, text.find(']', end + 1) - end - 2), o);
    return o;
  }
  if (starts(text, "[")) {
    o.kind = Kind::kAddress;
    parse_address(text.substr(1, text.find(']') - 1), o);
    return o;
  }
  const std::size_t dot = text.find('.');
  const std::string_view name = text.substr(0, dot);
  if (dot != std::string_view::npos) o.text = std::string(text.substr(dot));
  struct Form {
    std::string_view letters;
    Kind kind;
    int zero;
  };
  if (name == "PR" || name == "UPR") {
    o.kind = name == "PR" ? Kind::kPredicates : Kind::kUniformPredicates;
    return o;
  }
  for (const Form& form :
       {Form{"UR", Kind::kUniform, kZeroUniform}, Form{"UP", Kind::kUniformPredicate, kTrue},
        Form{"R", Kind::kRegister, kZeroRegister}, Form{"P", Kind::kPredicate, kTrue},
        Form{"B", Kind::kBarrier, 0}}) {
    o.index = register_index(name, form.letters, form.zero);
    if (o.index < 0) continue;
    o.kind = form.kind;
    return o;
  }
  o.text = std::string(text);
  return o;
}

}  // namespace detail

struct Instruction {
  std::uint64_t address = 0;
  std::string text;                    ///< as printed
  std::string name;                    ///< without modifiers, such as LDS
  std::vector<std::string> modifiers;  ///< such as 64
  int guard = kTrue;                   ///< the predicate that it needs
  bool guard_inverted = false, guard_uniform = false;
  std::vector<Operand> operands;
  bool spills = false;  ///< moves a register that had no room to the stack, or back

  bool has(std::string_view modifier) const {
    for (const std::string& m : modifiers) {
      if (m == modifier) return true;
    }
    return false;
  }
  /// Bytes that a load or store moves for each lane.
  int access_bytes() const {
    struct Width {
      const char* name;
      int bytes;
    };
    for (const Width& w : {Width{"U8", 1}, Width{"S8", 1}, Width{"U16", 2}, Width{"S16", 2},
                           Width{"64", 8}, Width{"128", 16}}) {
      if (has(w.name)) return w.bytes;
    }
    return 4;
  }

  /// Parses the text between the address and the semicolon.
  static Instruction parse(std::uint64_t address, std::string_view line) {
    Instruction in;
    in.address = address;
    if (const std::size_t comment = line.find("(*"); comment != std::string_view::npos) {
      in.spills = line.find("SpillRefill", comment) != std::string_view::npos;
      line = line.substr(0, comment);
    }
    line = detail::trim(line);
    in.text = std::string(line);
    if (detail::starts(line, "@")) {
      const std::size_t end = line.find(' ');
      const Operand guard = detail::parse_operand(line.substr(1, end - 1));
      in.guard = guard.index;
      in.guard_inverted = guard.inverted;
      in.guard_uniform = guard.kind == Kind::kUniformPredicate;
      line = detail::trim(line.substr(end));
    }
    const std::size_t end = line.find(' ');
    const std::vector<std::string_view> pieces = detail::split(line.substr(0, end), '.');
    if (pieces.empty()) throw SassError("no instruction in '" + in.text + "'");
    in.name = std::string(pieces[0]);
    for (std::size_t i = 1; i < pieces.size(); ++i) in.modifiers.emplace_back(pieces[i]);
    if (end == std::string_view::npos) return in;
    for (const std::string_view part : detail::split(line.substr(end), ',')) {
      // BRX R32 -0x1c6b0 and RET.REL.NODEC R52 `(label) have no comma.
      const std::size_t space = part.find(' ');
      in.operands.push_back(detail::parse_operand(part.substr(0, space)));
      if (space == std::string_view::npos) continue;
      in.operands.push_back(detail::parse_operand(detail::trim(part.substr(space))));
    }
    return in;
  }
};

}  // namespace dcls::cuda_sass
