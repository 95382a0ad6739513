// When a team of threads is taken: for enough work, unless teams have lost time lately.
#include <atomic>
#include <cstdint>
#include <vector>

#include "check.hpp"
#include "cpu/runtime/parallel.hpp"

namespace {

using dcls::cpu::share;
using dcls::cpu::Share;
using dcls::cpu::TeamAccount;

constexpr std::int64_t kMs = 1000000;

void lose(TeamAccount& account, std::int64_t milliseconds, std::int64_t now) {
  account.settle(0, static_cast<double>(milliseconds * kMs), now);
}

TEST(hiccups_are_paid_by_gains) {
  TeamAccount account;
  lose(account, 15, 0);
  CHECK(!account.is_closed_to(1, 1));
  account.settle(30. * kMs, 15. * kMs, 1);  // as large a gain
  lose(account, 15, 2);
  CHECK(!account.is_closed_to(1, 3));
  for (int i = 0; i < 1000; ++i) account.settle(30. * kMs, 15. * kMs, 3);
  lose(account, 25, 4);  // what is remembered of many gains is limited
  CHECK(account.is_closed_to(1, 5));
}

TEST(losses_close_it_for_a_while) {
  TeamAccount account;
  lose(account, 20, 0);  // all of the credit
  CHECK(!account.is_closed_to(1, 0));
  lose(account, 3, 0);
  CHECK(account.is_closed_to(1, 0));
  CHECK(account.is_closed_to(11. * kMs, 0));
  CHECK(!account.is_closed_to(13. * kMs, 0));  // large beside the loss
  CHECK(account.is_closed_to(1, 95 * kMs));
  CHECK(!account.is_closed_to(1, 97 * kMs));
  lose(account, 1, 97 * kMs);  // tried in vain
  CHECK(account.is_closed_to(1, 98 * kMs));
  CHECK(!account.is_closed_to(1, 130 * kMs));
  lose(account, 60000, 200 * kMs);  // a process that was stopped
  CHECK(!account.is_closed_to(1, 1201 * kMs));
}

TEST(gains_keep_it_open) {
  TeamAccount account;
  lose(account, 20, 0);
  for (std::int64_t i = 1; i < 100; ++i) {
    account.settle(3. * kMs, 1. * kMs, i);
    lose(account, 1, i);
    CHECK(!account.is_closed_to(1, i));
  }
}

TEST(small_work_wakes_nobody) {
  CHECK_EQ(share(1000, 10, 4).threads, 1);
  CHECK_EQ(share(1, 1e12, 4).threads, 1);
  CHECK_EQ(share(0, 1e12, 4).threads, 1);
  CHECK_EQ(share(0, 0, 4).threads, 1);
  CHECK_EQ(share(std::int64_t{1} << 62, 0, 1).threads, 1);
  CHECK_EQ(share(4, 1e6, 0).threads, 1);
#if defined(_OPENMP)
  CHECK_EQ(share(7000, 10, 4).threads, 2);
  CHECK_EQ(share(3, 1e6, 4).threads, 3);
  CHECK_EQ(share(1000, 1e300, 4).threads, 4);
  CHECK_EQ(share(100000, 10, 4).threads, 4);
#endif
}

// Before the tests that start teams, whose gains and losses depend on the machine.
TEST(the_account_of_the_library_closes) {
#if defined(_OPENMP)
  CHECK_EQ(share(4, 32769, 2).threads, 2);
  lose(dcls::cpu::team_account, 2000, dcls::cpu::now_in_nanoseconds());
  CHECK_EQ(share(4, 32769, 2).threads, 1);
  CHECK_EQ(share(4, 1e10, 2).threads, 2);
#endif
}

TEST(every_item_is_taken_once) {
  for (const int threads : {1, 2, 5}) {
    for (const std::int64_t count : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> taken(static_cast<std::size_t>(count));
      dcls::cpu::parallel_for(count, Share{threads, 3},
                              [&](std::int64_t begin, std::int64_t end, int thread) {
                                CHECK(thread >= 0 && thread < threads);
                                for (std::int64_t i = begin; i < end; ++i) {
                                  ++taken[static_cast<std::size_t>(i)];
                                }
                              });
      for (const auto& times : taken) CHECK_EQ(times.load(), 1);
    }
  }
}

}  // namespace

CHECK_MAIN()
