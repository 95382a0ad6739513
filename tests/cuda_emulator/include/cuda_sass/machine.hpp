// Runs SASS: the warps of one block at a time, instruction by instruction.
//
// Lanes that took different branches are groups of their own. They meet again where the hardware
// makes them: at BSYNC, WARPSYNC and barriers. Global memory is the memory of this process.
#pragma once

#include <cstring>
#include <functional>
#include <memory>

#include "counts.hpp"
#include "program.hpp"

namespace dcls::cuda_sass {

/// Generic addresses of shared memory have this upper half, which no address of the host has.
inline constexpr std::uint32_t kSharedWindow = 0xfff5a000u;

/// Lanes of a warp that are at the same instruction.
struct Group {
  enum class Wait : std::uint8_t { kNone, kConverge, kWarp, kBlock };
  std::uint64_t pc = 0;
  std::uint32_t lanes = 0;
  Wait wait = Wait::kNone;
  std::uint32_t for_lanes = 0;  ///< of kConverge and kWarp
  std::uint64_t then = 0;       ///< where it goes on after kConverge
};

/// Bytes on their way to shared memory.
struct AsyncCopy {
  unsigned char* to;
  int bytes;
  std::array<unsigned char, 16> data;
};

struct Warp {
  std::array<Lanes, 257> r{};  ///< the last one takes what is written to RZ
  std::array<std::uint32_t, 65> u{};
  std::array<std::uint32_t, 8> p{};  ///< a bit for each lane
  std::array<bool, 8> up{};
  struct Convergence {
    std::uint32_t lanes = 0;
    std::uint64_t target = 0;
  };
  std::array<std::array<Convergence, kLanes>, 16> converge{};
  std::vector<Group> groups;
  std::vector<unsigned char> local;  ///< bytes of a lane's stack, lane after lane
  int index = 0;                     ///< in the block
  std::uint32_t live = 0;
  std::uint64_t collective_end = 0;
  std::vector<std::vector<AsyncCopy>> copies{1};  ///< groups; the last one is open
};

/// What a launch is.
struct LaunchShape {
  std::uint64_t grid = 1;
  unsigned threads = 32;
  std::size_t shared_bytes = 0;           ///< dynamic
  std::vector<unsigned char> parameters;  ///< as they lie in constant memory
};

class Machine {
 public:
  Machine(const Kernel& kernel, const LaunchShape& shape);

  /// Runs one block to its end and adds to counts().
  /// @throws SassError for an instruction that is not known, an address outside of shared memory,
  /// a trap, or a deadlock.
  void run_block(std::uint64_t block);

  const Counts& counts() const { return counts_; }

  // What follows is for the operations.

  struct Step {  ///< what an operation works on
    Machine& machine;
    Warp& warp;
    Group& group;
    const Instruction& in;
    std::uint32_t lanes;  ///< whose guard holds
    Count& count;
  };
  using Operation = void (*)(const Step&);

  const Kernel& kernel() const { return *kernel_; }
  std::uint64_t block() const { return block_; }
  const LaunchShape& shape() const { return shape_; }

  template <typename T>
  T constant(int bank, std::int64_t offset) const {
    const std::vector<unsigned char>& from = bank == 0 ? constants_ : kernel_->constants;
    T value{};
    if (offset < 0 || static_cast<std::size_t>(offset) + sizeof(T) > from.size()) {
      throw SassError("constant " + std::to_string(offset) + " of bank " + std::to_string(bank) +
                      " does not exist");
    }
    std::memcpy(&value, from.data() + offset, sizeof(T));
    return value;
  }
  unsigned char* shared(std::uint64_t address, int bytes) {
    if (address + static_cast<std::uint64_t>(bytes) > shared_.size()) {
      throw SassError("address " + std::to_string(address) + " is outside of shared memory");
    }
    return shared_.data() + address;
  }

  std::uint64_t target(const std::string& label) const {
    const auto found = kernel_->labels.find(label);
    if (found != kernel_->labels.end()) return found->second;
    if (label == kernel_->symbol) return 0;
    throw SassError("there is no label " + label);
  }
  /// Sends some lanes of a group elsewhere.
  static void branch(const Step& s, std::uint32_t taken, std::uint64_t to) {
    if (taken == 0) return;
    if (taken == s.group.lanes) {
      s.group.pc = to;
      return;
    }
    s.group.lanes &= ~taken;
    Group other;
    other.pc = to;
    other.lanes = taken;
    s.warp.groups.push_back(other);  // s.group may be gone now
  }

 private:
  struct Decoded {
    const Instruction* in;
    Operation run;
  };

  bool step(Warp& warp, std::size_t group);
  bool release(Warp& warp);
  void release_block();

  const Kernel* kernel_;
  LaunchShape shape_;
  std::vector<unsigned char> constants_, shared_;
  std::vector<Decoded> code_;
  Counts counts_;
  std::vector<std::unique_ptr<Warp>> warps_;
  std::uint64_t block_ = 0;
};

/// The operation of an instruction; null if it is not known. In operations.hpp.
Machine::Operation find_operation(const Instruction& in);

inline Machine::Machine(const Kernel& kernel, const LaunchShape& shape)
    : kernel_(&kernel), shape_(shape), counts_(kernel.code.size()) {
  constants_.resize(kernel.parameters_at + kernel.parameter_bytes);
  const auto put = [&](std::size_t at, std::uint32_t value) {
    if (at + 4 <= constants_.size()) std::memcpy(constants_.data() + at, &value, 4);
  };
  put(0x0, shape.threads);
  put(0x4, 1);
  put(0x8, 1);
  put(0xc, static_cast<std::uint32_t>(shape.grid));
  put(0x10, 1);
  put(0x14, 1);
  put(0x28, kernel.stack);
  if (shape.parameters.size() > kernel.parameter_bytes) {
    throw SassError("the launch has " + std::to_string(shape.parameters.size()) +
                    " bytes of parameters, " + kernel.symbol + " takes " +
                    std::to_string(kernel.parameter_bytes));
  }
  std::memcpy(constants_.data() + kernel.parameters_at, shape.parameters.data(),
              shape.parameters.size());
  shared_.resize((kernel.shared + 15u) / 16u * 16u + shape.shared_bytes);
  for (const Instruction& in : kernel.code) code_.push_back({&in, find_operation(in)});
}

inline void Machine::run_block(std::uint64_t block) {
  block_ = block;
  warps_.clear();
  std::fill(shared_.begin(), shared_.end(), static_cast<unsigned char>(0xff));
  for (unsigned first = 0; first < shape_.threads; first += kLanes) {
    warps_.push_back(std::make_unique<Warp>());
    Warp& warp = *warps_.back();
    const unsigned count = std::min<unsigned>(kLanes, shape_.threads - first);
    warp.index = static_cast<int>(first / kLanes);
    warp.live = count == kLanes ? 0xffffffffu : (1u << count) - 1u;
    warp.p[kTrue] = 0xffffffffu;
    warp.up[kTrue] = true;
    warp.local.resize(std::size_t{kernel_->stack} * kLanes);
    Group all;
    all.lanes = warp.live;
    warp.groups.push_back(all);
  }
  for (bool running = true; running;) {
    bool moved = false;
    running = false;
    for (const auto& warp : warps_) {
      for (;;) {
        std::size_t g = 0;
        while (g < warp->groups.size() && warp->groups[g].wait != Group::Wait::kNone) ++g;
        if (g == warp->groups.size()) {
          if (!release(*warp)) break;
          moved = true;
          continue;
        }
        while (step(*warp, g)) moved = true;
        moved = true;
      }
      running = running || !warp->groups.empty();
    }
    if (!running) break;
    release_block();
    if (!moved) throw SassError("the block is in a deadlock");
  }
}

/// Runs the next instruction of a group; false if the group waits, has ended or was cut.
inline bool Machine::step(Warp& warp, std::size_t index) {
  Group& group = warp.groups[index];
  const std::size_t at = group.pc / 16;
  if (at >= code_.size()) throw SassError("the program has run past its end");
  const Decoded& now = code_[at];
  const Instruction& in = *now.in;
  std::uint32_t guard = in.guard_uniform ? (warp.up[static_cast<std::size_t>(in.guard)] ? ~0u : 0u)
                                         : warp.p[static_cast<std::size_t>(in.guard)];
  if (in.guard_inverted) guard = ~guard;
  const std::uint32_t lanes = group.lanes & guard;
  Count& count = counts_[at];
  ++count.issued;
  count.lanes += static_cast<unsigned>(__builtin_popcount(lanes));
  group.pc += 16;
  if (lanes == 0) return true;
  if (now.run == nullptr) throw SassError("unknown instruction: " + in.text);
  const std::size_t groups = warp.groups.size();
  try {
    now.run({*this, warp, group, in, lanes, count});
  } catch (const SassError& e) {
    throw SassError(std::string(e.what()) + "\n  in " + in.text + " at " +
                    std::to_string(in.address) + " of " + kernel_->symbol);
  }
  if (warp.groups.size() != groups) return false;
  return warp.groups[index].wait == Group::Wait::kNone;
}

/// Lets groups go on that have met; false if there are none.
inline bool Machine::release(Warp& warp) {
  for (const Group& first : warp.groups) {
    if (first.wait != Group::Wait::kConverge && first.wait != Group::Wait::kWarp) continue;
    const std::uint32_t wanted = first.for_lanes & warp.live;
    std::uint32_t here = 0;
    const auto same = [&](const Group& g) {
      return g.wait == first.wait && g.then == first.then && (g.lanes & wanted) != 0;
    };
    for (const Group& g : warp.groups) {
      if (same(g)) here |= g.lanes;
    }
    if ((here & wanted) != wanted) continue;
    Group merged;
    merged.pc = first.then;
    merged.lanes = here;
    std::vector<Group> rest;
    for (const Group& g : warp.groups) {
      if (!same(g)) rest.push_back(g);
    }
    rest.push_back(merged);
    warp.groups = std::move(rest);
    return true;
  }
  return false;
}

/// Opens the block's barrier if all its threads are there.
inline void Machine::release_block() {
  for (const auto& warp : warps_) {
    for (const Group& g : warp->groups) {
      if (g.wait != Group::Wait::kBlock) return;
    }
  }
  for (const auto& warp : warps_) {
    std::vector<Group> merged;
    for (Group g : warp->groups) {
      g.wait = Group::Wait::kNone;
      const auto same =
          std::find_if(merged.begin(), merged.end(), [&](const Group& m) { return m.pc == g.pc; });
      if (same != merged.end()) {
        same->lanes |= g.lanes;
      } else {
        merged.push_back(g);
      }
    }
    warp->groups = std::move(merged);
  }
}

}  // namespace dcls::cuda_sass
