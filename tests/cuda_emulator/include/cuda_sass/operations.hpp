// Branches and barriers of SASS, and the table of all operations.
#pragma once

#include "operations_memory.hpp"

namespace dcls::cuda_sass {
namespace operation {

/// The lanes that an instruction with more predicates than its guard takes.
inline std::uint32_t taking(const Step& s) {
  std::uint32_t lanes = s.lanes;
  for (const Operand& o : s.in.operands) {
    if (o.kind == Kind::kPredicate || o.kind == Kind::kUniformPredicate) lanes &= predicate(s, o);
  }
  return lanes;
}

inline void nothing(const Step&) {}

inline void branch(const Step& s) {
  std::uint32_t lanes = taking(s);
  if (s.in.has("DIV")) {  // taken by a warp that is not together
    Lanes room;
    const std::uint32_t wanted = ints(s, s.in.operands[0], room)[0] & s.warp.live;
    if ((s.group.lanes & wanted) == wanted) return;
  }
  Machine::branch(s, lanes, s.machine.target(s.in.operands.back().text));
}

/// Sends each lane to its own address.
template <typename Target>
void branch_to_each(const Step& s, const Target& target) {
  std::uint32_t rest = s.lanes;
  const std::uint32_t all = s.group.lanes;
  std::vector<Group> groups;
  while (rest != 0) {
    const std::uint64_t to = target(static_cast<std::size_t>(__builtin_ctz(rest)));
    Group g;
    g.pc = to;
    g.lanes = lanes_where(rest, [&](std::size_t l) { return target(l) == to; });
    rest &= ~g.lanes;
    groups.push_back(g);
  }
  if (groups.size() == 1 && groups[0].lanes == all) {
    s.group.pc = groups[0].pc;
    return;
  }
  std::size_t first = 0;
  if (s.lanes == all) {  // one of them stays in this group
    s.group.pc = groups[0].pc;
    s.group.lanes = groups[0].lanes;
    first = 1;
  } else {
    s.group.lanes &= ~s.lanes;
  }
  s.warp.groups.insert(s.warp.groups.end(), groups.begin() + static_cast<std::ptrdiff_t>(first),
                       groups.end());
}

inline void branch_indexed(const Step& s) {
  const Operand& base = s.in.operands[0];
  Lanes room;
  const std::uint32_t* const low = ints(s, base, room);
  Lanes copy;
  std::copy(low, low + kLanes, copy.begin());
  const auto next = static_cast<std::int64_t>(s.group.pc);
  const std::int64_t offset = s.in.operands.size() > 1 ? s.in.operands[1].value : 0;
  branch_to_each(s, [&, next](std::size_t l) {
    return static_cast<std::uint64_t>(next + static_cast<std::int32_t>(copy[l]) + offset);
  });
}

inline void call(const Step& s) {
  Machine::branch(s, s.lanes, s.machine.target(s.in.operands.back().text));
}

inline void give_back(const Step& s) {
  Lanes room, copy;
  const std::uint32_t* const low = ints(s, s.in.operands[0], room);
  std::copy(low, low + kLanes, copy.begin());
  branch_to_each(s, [&](std::size_t l) { return std::uint64_t{copy[l]}; });
}

inline void leave(const Step& s) {
  const std::uint32_t lanes = taking(s);
  s.warp.live &= ~lanes;
  s.group.lanes &= ~lanes;
  if (s.group.lanes != 0) return;
  s.warp.groups.erase(s.warp.groups.begin() + (&s.group - s.warp.groups.data()));
}

/// BSSY: from here to the next BSYNC of the same register, lanes may go apart.
inline void set_convergence(const Step& s) {
  auto& lanes = s.warp.converge[static_cast<std::size_t>(s.in.operands[0].index)];
  const std::uint64_t to = s.machine.target(s.in.operands[1].text);
  for_lanes(s.lanes, [&](std::size_t l) { lanes[l] = {s.lanes, to}; });
}

inline void converge(const Step& s) {
  const auto& lanes = s.warp.converge[static_cast<std::size_t>(s.in.operands[0].index)];
  const auto& mine = lanes[static_cast<std::size_t>(__builtin_ctz(s.lanes))];
  if (s.lanes != s.group.lanes) throw SassError("BSYNC of a part of the lanes");
  if ((mine.lanes & s.warp.live & ~s.group.lanes) == 0) {
    s.group.pc = mine.target;
    return;
  }
  s.group.wait = Group::Wait::kConverge;
  s.group.for_lanes = mine.lanes;
  s.group.then = mine.target;
}

/// BREAK: these lanes will not come to the BSYNC.
inline void leave_convergence(const Step& s) {
  const std::uint32_t gone = taking(s);
  auto& lanes = s.warp.converge[static_cast<std::size_t>(s.in.operands.back().index)];
  for (auto& lane : lanes) lane.lanes &= ~gone;
  for (Group& g : s.warp.groups) {
    if (g.wait == Group::Wait::kConverge) g.for_lanes &= ~gone;
  }
}

inline void wait_for_warp(const Step& s) {
  std::uint32_t wanted = ~0u;
  if (!s.in.has("ALL") && !s.in.operands.empty()) {
    Lanes room;
    wanted = ints(s, s.in.operands[0], room)[static_cast<std::size_t>(__builtin_ctz(s.lanes))];
  }
  if (s.in.has("COLLECTIVE")) s.warp.collective_end = s.machine.target(s.in.operands[1].text);
  if ((wanted & s.warp.live & ~s.group.lanes) == 0) return;
  s.group.wait = Group::Wait::kWarp;
  s.group.for_lanes = wanted;
  s.group.then = s.group.pc;
}

inline void end_collective(const Step& s) { s.group.pc = s.warp.collective_end; }

inline void wait_for_block(const Step& s) {
  if (!s.in.has("SYNC")) throw SassError("a barrier that is not known");
  s.group.wait = Group::Wait::kBlock;
}

inline void trap(const Step&) { throw SassError("the kernel has trapped"); }

}  // namespace operation

inline Machine::Operation find_operation(const Instruction& in) {
  namespace op = operation;
  static const std::unordered_map<std::string, Machine::Operation> table = {
      {"IADD3", op::add3},
      {"VIADD", op::add3},
      {"IADD", op::add3},
      {"IMAD", op::multiply_add},
      {"LEA", op::shift_add},
      {"SHF", op::shift},
      {"LOP3", op::logic3},
      {"PLOP3", op::predicate_logic},
      {"ISETP", op::compare_integers},
      {"VIMNMX", op::integer_extreme},
      {"VIADDMNMX", op::integer_extreme},
      {"IMNMX", op::integer_extreme},
      {"IABS", op::absolute},
      {"MOV", op::move},
      {"R2UR", op::to_uniform},
      {"SEL", op::select},
      {"FSEL", op::select},
      {"PRMT", op::permute},
      {"POPC", op::count_bits},
      {"FLO", op::highest_bit},
      {"BREV", op::reverse_bits},
      {"VOTE", op::vote},
      {"R2P", op::predicates_from_register},
      {"R2UP", op::predicates_from_register},
      {"P2R", op::register_from_predicates},
      {"UP2R", op::register_from_predicates},
      {"P2UR", op::register_from_predicates},
      {"FFMA", op::fma},
      {"FADD", op::add},
      {"FMUL", op::multiply},
      {"FSETP", op::compare_and_set_predicate},
      {"FSET", op::compare_and_set},
      {"FMNMX", op::float_extreme},
      {"MUFU", op::special_function},
      {"FCHK", op::check_division},
      {"FRND", op::round_to_integer},
      {"I2F", op::integer_to_float},
      {"I2FP", op::integer_to_float},
      {"F2I", op::float_to_integer},
      {"F2F", op::float_to_float},
      {"F2FP", op::pack_halves},
      {"HADD2", op::on_halves},
      {"HMUL2", op::on_halves},
      {"HFMA2", op::on_halves},
      {"HMMA", op::multiply_matrices},
      {"LDS", op::load<op::Space::kShared>},
      {"LDG", op::load<op::Space::kGlobal>},
      {"LDL", op::load<op::Space::kLocal>},
      {"LD", op::load<op::Space::kGeneric>},
      {"STS", op::store<op::Space::kShared>},
      {"STG", op::store<op::Space::kGlobal>},
      {"STL", op::store<op::Space::kLocal>},
      {"ST", op::store<op::Space::kGeneric>},
      {"LDGSTS", op::copy_async},
      {"LDSM", op::load_matrices},
      {"LDC", op::load_constant},
      {"SHFL", op::shuffle},
      {"S2R", op::special_register},
      {"CS2R", op::special_register},
      {"BRA", op::branch},
      {"BRX", op::branch_indexed},
      {"BRXU", op::branch_indexed},
      {"CALL", op::call},
      {"RET", op::give_back},
      {"EXIT", op::leave},
      {"BSSY", op::set_convergence},
      {"BSYNC", op::converge},
      {"BREAK", op::leave_convergence},
      {"WARPSYNC", op::wait_for_warp},
      {"ENDCOLLECTIVE", op::end_collective},
      {"BAR", op::wait_for_block},
      {"BPT", op::trap},
      {"NOP", op::nothing},
      {"YIELD", op::nothing},
      {"NANOSLEEP", op::nothing},
      {"LDGDEPBAR", op::close_copies},
      {"DEPBAR", op::wait_for_copies},
      {"MEMBAR", op::nothing},
      {"ERRBAR", op::nothing},
      {"CCTL", op::nothing},
      {"CCTLL", op::nothing},
  };
  auto found = table.find(in.name);
  if (found == table.end() && in.name == "S2UR") found = table.find("S2R");
  if (found == table.end() && in.name == "UP2UR") found = table.find("P2R");
  if (found == table.end() && in.name == "VOTEU") found = table.find("VOTE");
  // Those of the uniform path differ in their registers only.
  if (found == table.end() && in.name[0] == 'U') found = table.find(in.name.substr(1));
  return found == table.end() ? nullptr : found->second;
}

}  // namespace dcls::cuda_sass
