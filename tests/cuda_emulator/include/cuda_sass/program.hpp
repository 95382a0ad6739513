// What nvdisasm prints of a cubin: the kernels, their instructions and what they need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <istream>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "instruction.hpp"

namespace dcls::cuda_sass {

struct Kernel {
  std::string symbol;
  std::vector<Instruction> code;                          ///< at 16 * index
  std::unordered_map<std::string, std::uint64_t> labels;  ///< addresses
  std::vector<unsigned char> constants;                   ///< bank 2, the tables of branches
  unsigned registers = 0;
  unsigned stack = 0;          ///< bytes a thread
  unsigned shared = 0;         ///< bytes of static shared memory, with what the system reserves
  unsigned parameters_at = 0;  ///< place of the parameters in constant bank 0
  unsigned parameter_bytes = 0;
};

/// The kernels of a cubin by symbol.
using Program = std::map<std::string, Kernel>;

namespace detail {

inline std::uint64_t last_number(std::string_view line) {
  const std::size_t space = line.find_last_of(" \t");
  return std::strtoull(std::string(line.substr(space + 1)).c_str(), nullptr, 0);
}

class ProgramReader {
 public:
  void take(const std::string& text) {
    const std::string_view line = trim(text);
    if (starts(line, ".section\t") || starts(line, ".section ")) return begin_section(line);
    if (starts(line, "//-----")) {
      const std::size_t colon = line.find("EIATTR_");
      if (colon != std::string_view::npos) attribute_ = std::string(line.substr(colon));
      return;
    }
    if (section_ == ".text") {
      take_code(text, line);
    } else if (section_ == ".nv.info" || section_ == ".nv.info.") {
      take_info(line);
    } else if (section_ == ".nv.shared" && starts(line, ".zero")) {
      kernel().shared += static_cast<unsigned>(last_number(line));
    } else if (section_ == ".nv.constant2" && line.find(".byte") != std::string_view::npos) {
      for (const std::string_view part : split(line.substr(line.find(".byte") + 5), ',')) {
        kernel().constants.push_back(static_cast<unsigned char>(integer(part)));
      }
    }
  }

  Program finish() {
    for (auto it = program_.begin(); it != program_.end();) {
      it = it->second.code.empty() ? program_.erase(it) : std::next(it);
    }
    return std::move(program_);
  }

 private:
  Kernel& kernel() {
    Kernel& k = program_[symbol_];
    k.symbol = symbol_;
    return k;
  }

  void begin_section(std::string_view line) {
    const std::string name(split(trim(line.substr(8)), ',')[0]);
    section_.clear();
    for (const char* prefix : {".text", ".nv.shared", ".nv.constant2", ".nv.info"}) {
      const std::string with_dot = std::string(prefix) + ".";
      if (name == prefix) section_ = prefix;
      if (!starts(name, with_dot)) continue;
      section_ = prefix;
      symbol_ = name.substr(with_dot.size());
    }
    if (starts(symbol_, "reserved")) section_.clear();
  }

  void take_code(const std::string& text, std::string_view line) {
    if (!text.empty() && !std::isspace(static_cast<unsigned char>(text[0])) && line.back() == ':') {
      kernel().labels[std::string(line.substr(0, line.size() - 1))] = kernel().code.size() * 16;
      return;
    }
    if (!starts(line, "/*")) return;
    const std::size_t end = line.find("*/"), semicolon = line.find(';', end);
    if (semicolon == std::string_view::npos) return;
    const auto address = static_cast<std::uint64_t>(integer(line.substr(2, end - 2)));
    if (address != kernel().code.size() * 16) {
      throw SassError("instructions are not 16 bytes apart at " + std::string(line));
    }
    kernel().code.push_back(Instruction::parse(address, line.substr(end + 2, semicolon - end - 2)));
  }

  void take_info(std::string_view line) {
    const std::size_t word = line.find(".word");
    if (const std::size_t name = line.find("index@("); name != std::string_view::npos) {
      named_ = std::string(line.substr(name + 7, line.size() - name - 8));
      shorts_ = 0;
    } else if (word != std::string_view::npos && attribute_ == "EIATTR_REGCOUNT") {
      program_[named_].registers = static_cast<unsigned>(last_number(line));
    } else if (word != std::string_view::npos && attribute_ == "EIATTR_MIN_STACK_SIZE") {
      program_[named_].stack = static_cast<unsigned>(last_number(line));
    } else if (attribute_ == "EIATTR_PARAM_CBANK" &&
               line.find(".short") != std::string_view::npos &&
               line.find("0x") != std::string_view::npos && starts(named_, ".nv.constant0.")) {
      Kernel& k = program_[named_.substr(14)];
      (shorts_++ == 0 ? k.parameters_at : k.parameter_bytes) =
          static_cast<unsigned>(last_number(line));
    }
  }

  Program program_;
  std::string section_, symbol_, attribute_, named_;
  int shorts_ = 0;
};

}  // namespace detail

/// Reads what `nvdisasm FILE.cubin` prints.
/// @throws SassError if it is not that.
inline Program read_program(std::istream& from) {
  detail::ProgramReader reader;
  for (std::string line; std::getline(from, line);) reader.take(line);
  Program program = reader.finish();
  if (program.empty()) throw SassError("there is no kernel in what nvdisasm printed");
  return program;
}

}  // namespace dcls::cuda_sass
