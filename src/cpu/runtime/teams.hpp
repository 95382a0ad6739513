#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dcls::cpu {

/// Whether teams of threads pay in this process.
///
/// A team ends when its last thread has been there. On a busy machine a thread that is wanted may
/// have to wait for its core for longer than all of the work takes. Nothing says so in advance, but
/// each team shows what it has gained or lost. If the losses outweigh the gains, one thread does
/// alone what is small beside the loss, and after a while a team is tried again. As results do not
/// depend on the number of threads, this changes nothing but the time.
///
/// Times are nanoseconds. Several threads may use an account at once: an entry that gets lost then
/// does no harm.
class TeamAccount {
 public:
  /// Whether work that takes one thread about `work` is better left to one thread now.
  bool is_closed_to(double work, std::int64_t now) const {
    return now < open_again_.load(std::memory_order_relaxed) &&
           work < kWorth * lost_.load(std::memory_order_relaxed);
  }

  /// A team has taken `team` for what takes one thread `alone`.
  void settle(double alone, double team, std::int64_t now) {
    const double balance =
        std::min(kMostCredit, balance_.load(std::memory_order_relaxed) + alone - team);
    balance_.store(std::max(0.0, balance), std::memory_order_relaxed);
    if (balance >= 0) return;
    lost_.store(-balance, std::memory_order_relaxed);
    open_again_.store(now + static_cast<std::int64_t>(std::min(kRest * -balance, kLongestRest)),
                      std::memory_order_relaxed);
  }

 private:
  /// Gains that are remembered. A single hiccup of a machine that is not busy costs less.
  static constexpr double kMostCredit = 20e6;
  /// A team of two gains half of the work. This is twice as much, since both are estimates.
  static constexpr double kWorth = 4;
  /// A new try may lose as much again: a thirtieth of the time, then.
  static constexpr double kRest = 32;
  static constexpr double kLongestRest = 1e9;

  std::atomic<double> balance_{kMostCredit};
  std::atomic<double> lost_{0};
  std::atomic<std::int64_t> open_again_{0};
};

/// That of the library.
inline TeamAccount team_account;

}  // namespace dcls::cpu
