// Takes the launches of the library, and runs blocks of their machine code.
#pragma once

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda_host.hpp"
#include "cuda_sass/operations.hpp"

namespace dcls::model {

/// The name of a kernel with its template arguments: dcls::cuda::conv_forward<float, false>.
inline std::string template_name(const std::string& symbol) {
  int status = 0;
  char* const text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  if (status != 0) throw std::runtime_error("cannot demangle " + symbol);
  const std::string whole(text);
  std::free(text);
  // "void name<...>(...)": up to the parenthesis outside of the brackets.
  std::size_t end = 0;
  int depth = 0;
  for (; end < whole.size() && (depth > 0 || whole[end] != '('); ++end) {
    if (whole[end] == '<') ++depth;
    if (whole[end] == '>') --depth;
  }
  const std::string name = whole.substr(0, end);
  const std::size_t space = name.find(' ');
  return space < name.find('<') ? name.substr(space + 1) : name;
}

inline std::string kernel_name(const void* kernel) {
  Dl_info info{};
  if (dladdr(kernel, &info) == 0 || info.dli_saddr != kernel) {
    throw std::runtime_error("a kernel has no symbol: is cuda_model linked with its symbols?");
  }
  return template_name(info.dli_sname);
}

/// The blocks of a grid that are run: `count` of them, evenly spaced.
inline std::vector<std::uint64_t> sample(std::uint64_t grid, std::uint64_t count) {
  std::vector<std::uint64_t> blocks;
  count = std::min(grid, count);
  for (std::uint64_t i = 0; i < count; ++i) blocks.push_back((2 * i + 1) * grid / (2 * count));
  return blocks;
}

/// Kernels whose results decide nothing in later ones: they need not run whole.
inline const std::set<std::string> kResultsOnly = {
    "conv_forward",      "conv_kernel_partial",     "toeplitz_forward",
    "to_channels_first", "toeplitz_kernel_partial", "layer_finish"};
/// Any other launch runs whole on the host if its blocks take at most so many warp instructions:
/// later kernels read lists of cells and taps that it writes.
inline constexpr double kRunWhole = 3e8;

class Launches {
 public:
  enum class Task {
    kNames,   ///< collect the names of the kernels
    kCosts,   ///< run some blocks of each launch, and print what they cost
    kResults  ///< run all blocks in place of the host
  };

  /// @param sass What nvdisasm printed: files.
  Launches(Task task, std::uint64_t blocks, const std::vector<std::string>& sass)
      : task_(task), blocks_(blocks) {
    for (const std::string& path : sass) {
      std::ifstream file(path);
      if (!file) throw std::runtime_error("cannot read " + path);
      for (auto& [symbol, kernel] : cuda_sass::read_program(file)) {
        program_[template_name(symbol)] = std::move(kernel);
      }
    }
  }

  /// @param head Members of JSON that tell the layer.
  void begin(const std::string& head) { head_ = head; }
  /// What the next launches are for.
  void begin_pass(const char* pass) { pass_ = pass; }
  const std::set<std::string>& names() const { return names_; }

  /// Whether the launch shall run on the host as well.
  bool take(const host_cuda::ObservedLaunch& launch) {
    const std::string name = kernel_name(launch.kernel);
    names_.insert(name);
    if (task_ == Task::kNames) return false;
    const auto found = program_.find(name);
    if (found == program_.end()) throw std::runtime_error("no machine code of " + name);
    if (launch.grid.y * launch.grid.z * launch.block.y * launch.block.z != 1) {
      throw std::runtime_error(name + " is launched with more than one axis");
    }
    cuda_sass::LaunchShape shape;
    shape.grid = launch.grid.x;
    shape.threads = launch.block.x;
    shape.shared_bytes = launch.shared_bytes;
    shape.parameters = launch.parameters;
    cuda_sass::Machine machine(found->second, shape);
    const bool all = task_ == Task::kResults;
    const std::vector<std::uint64_t> blocks = sample(launch.grid.x, all ? launch.grid.x : blocks_);
    for (const std::uint64_t block : blocks) machine.run_block(block);
    if (all) return false;
    const double issued = print(name, found->second, shape, machine.counts(), blocks.size());
    const std::string bare = name.substr(name.rfind(':', name.find('<')) + 1);
    if (kResultsOnly.count(bare.substr(0, bare.find('<'))) != 0) return false;
    const bool cheap = issued / static_cast<double>(blocks.size()) * launch.grid.x <= kRunWhole;
    if (!cheap) std::cerr << "cuda_model: " << name << " is too long to be run whole\n";
    return cheap;
  }

 private:
  /// Prints a line of JSON; returns the warp instructions.
  double print(const std::string& name, const cuda_sass::Kernel& kernel,
               const cuda_sass::LaunchShape& shape, const cuda_sass::Counts& counts,
               std::size_t blocks) {
    std::map<std::string, cuda_sass::Count> by_name;
    std::uint64_t issued = 0, spills = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const cuda_sass::Instruction& in = kernel.code[i];
      if (in.spills) ++spills;
      issued += counts[i].issued;
      std::string key = in.name;
      for (const std::string& m : in.modifiers) key += "." + m;
      by_name[key] += counts[i];
    }
    std::ostringstream out;
    out << "{" << head_ << ", \"pass\": \"" << pass_ << "\", \"kernel\": \"" << name
        << "\", \"grid\": " << shape.grid << ", \"threads\": " << shape.threads
        << ", \"shared\": " << kernel.shared + shape.shared_bytes
        << ", \"registers\": " << kernel.registers << ", \"stack\": " << kernel.stack
        << ", \"spill_instructions\": " << spills << ", \"code\": " << counts.size()
        << ", \"blocks\": " << blocks << ", \"counts\": {";
    const char* comma = "";
    for (const auto& [key, c] : by_name) {
      out << comma << "\"" << key << "\": [" << c.issued << ", " << c.lanes << ", " << c.accesses
          << ", " << c.wavefronts << ", " << c.least << ", " << c.sectors << "]";
      comma = ", ";
    }
    std::cout << out.str() << "}}" << std::endl;
    return static_cast<double>(issued);
  }

  Task task_;
  std::uint64_t blocks_;
  std::map<std::string, cuda_sass::Kernel> program_;
  std::set<std::string> names_;
  std::string head_;
  const char* pass_ = "";
};

}  // namespace dcls::model
