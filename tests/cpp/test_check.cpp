// check.hpp itself: each kind of failure must be noticed, or no other test of this folder means
// anything.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "check.hpp"

namespace {

const double kNan = std::nan("");

void nothing() {}
void condition() { CHECK(1 + 1 == 3); }
void required() {
  REQUIRE(false);
  std::abort();  // not reached
}
void unequal() { CHECK_EQ(2 + 2, 5); }
void far() { CHECK_CLOSE(1.0, 1.1, 1e-3, 0.0); }
void nan_for_number() { CHECK_CLOSE(kNan, 1.0, 1.0, 1.0); }
void number_for_nan() { CHECK_CLOSE(1.0, kNan, 1.0, 1.0); }
void infinite() { CHECK_CLOSE(1e300, HUGE_VAL, 1.0, 0.0); }
void all_far() { CHECK_ALL_CLOSE((std::vector<float>{1, 2}), (std::vector<float>{1, 3}), 1e-3, 0); }
void shorter() { CHECK_ALL_CLOSE((std::vector<float>{1}), (std::vector<float>{1, 3}), 1, 1); }
void zero_signs() { CHECK_SAME_BITS((std::vector<float>{0.0f}), (std::vector<float>{-0.0f})); }
void no_throw() { CHECK_THROWS(std::runtime_error, "", nothing()); }
void other_type() { CHECK_THROWS(std::runtime_error, "", throw std::logic_error("x")); }
void other_text() { CHECK_THROWS(std::runtime_error, "y", throw std::runtime_error("x")); }
void uncaught() { throw std::runtime_error("unexpected"); }

void sound() {
  CHECK(true);
  REQUIRE(true);
  CHECK_EQ(4, 4);
  CHECK_CLOSE(1.0, 1.1, 0.1, 0.0);
  CHECK_CLOSE(kNan, kNan, 0.0, 0.0);
  CHECK_CLOSE(HUGE_VAL, HUGE_VAL, 0.0, 0.0);
  CHECK_ALL_CLOSE((std::vector<double>{1, kNan}), (std::vector<double>{1, kNan}), 0, 0);
  CHECK_SAME_BITS((std::vector<double>{kNan}), (std::vector<double>{kNan}));
  CHECK_THROWS(std::logic_error, "part", throw std::invalid_argument("a part of it"));
}

}  // namespace

int main() {
  const check::Test failing[] = {{"nothing", nothing},
                                 {"condition", condition},
                                 {"required", required},
                                 {"unequal", unequal},
                                 {"far", far},
                                 {"nan_for_number", nan_for_number},
                                 {"number_for_nan", number_for_nan},
                                 {"infinite", infinite},
                                 {"all_far", all_far},
                                 {"shorter", shorter},
                                 {"zero_signs", zero_signs},
                                 {"no_throw", no_throw},
                                 {"other_type", other_type},
                                 {"other_text", other_text},
                                 {"uncaught", uncaught}};
  int wrong = 0;
  std::printf("these must fail:\n");
  for (const check::Test& test : failing) wrong += check::run_test(test) ? 1 : 0;
  std::printf("this must pass:\n");
  wrong += check::run_test({"sound", sound}) ? 0 : 1;
  if (check::Run::instance().failures != std::size(failing)) ++wrong;

  // The exit code of a whole run follows.
  char name[] = "test_check";
  char* arguments[] = {name, nullptr};
  check::Run::instance().tests = {{"sound", sound}, {"unequal", unequal}};
  if (check::main(1, arguments) == 0) ++wrong;
  check::Run::instance().tests = {{"sound", sound}};
  if (check::main(1, arguments) != 0) ++wrong;
  check::Run::instance().tests = {};
  if (check::main(1, arguments) == 0) ++wrong;
  std::printf(wrong == 0 ? "as it should be\n" : "check.hpp is wrong in %d cases\n", wrong);
  return wrong == 0 ? 0 : 1;
}
