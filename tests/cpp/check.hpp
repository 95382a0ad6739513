// Assertions for the C++ tests: what failed, with which values, in which case, and an exit code.
//
//   TEST(name) { CHECK_EQ(f(2), 4); }
//   CHECK_MAIN()
//
// CHECK... records a failure and goes on, REQUIRE ends the test. A test that checks nothing fails.
// The program takes parts of test names as arguments (none: all tests) and --list; it exits with 0
// only if every test it ran passed.
#pragma once

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

/// Ends a test; REQUIRE throws it after the failure is on record.
struct EndOfTest {};

/// The state of the run. Checks may come from several OS threads.
struct Run {
  std::vector<Test> tests;
  std::mutex mutex;
  std::atomic<std::size_t> checks{0};
  std::size_t failures = 0;
  std::size_t failures_here = 0;
  const char* test = "";
  static Run& instance() {
    static Run run;
    return run;
  }
};

struct Register {
  Register(const char* name, void (*run)()) { Run::instance().tests.push_back({name, run}); }
};

/// Lines that say which case is tested, innermost last, while the Case is in scope.
class Case {
 public:
  template <class... Parts>
  explicit Case(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    stack().push_back(text.str());
  }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;
  ~Case() { stack().pop_back(); }
  static std::vector<std::string>& stack() {
    static thread_local std::vector<std::string> lines;
    return lines;
  }
};

inline void fail(const char* file, int line, const std::string& message) {
  constexpr std::size_t kMostPerTest = 20;
  Run& run = Run::instance();
  const std::lock_guard<std::mutex> lock(run.mutex);
  ++run.failures;
  if (++run.failures_here > kMostPerTest) return;
  std::fprintf(stderr, "%s:%d: in test %s\n", file, line, run.test);
  for (const std::string& text : Case::stack()) std::fprintf(stderr, "  case: %s\n", text.c_str());
  std::fprintf(stderr, "  %s\n", message.c_str());
  if (run.failures_here == kMostPerTest) std::fprintf(stderr, "  (no more from this test)\n");
}

/// A value as text, with every digit a floating-point number has.
template <class T>
std::string show(const T& value) {
  std::ostringstream text;
  if constexpr (std::is_same_v<T, bool>) {
    text << (value ? "true" : "false");
  } else if constexpr (std::is_floating_point_v<T>) {
    text.precision(std::numeric_limits<T>::max_digits10);
    text << value;
  } else if constexpr (std::is_enum_v<T>) {
    text << static_cast<long long>(value);
  } else if constexpr (std::is_same_v<T, unsigned char> || std::is_same_v<T, signed char>) {
    text << static_cast<int>(value);
  } else {
    text << value;
  }
  return text.str();
}

inline bool check(bool passed, const char* file, int line, const std::string& message) {
  ++Run::instance().checks;
  if (!passed) fail(file, line, message);
  return passed;
}

template <class A, class B>
bool equal(const A& actual, const B& expected, const char* what, const char* file, int line) {
  const bool same = actual == expected;
  return check(same, file, line,
               same ? std::string()
                    : std::string(what) + ": got " + show(actual) + ", expected " + show(expected));
}

/// Whether `actual` is within atol + rtol * |expected|. A NaN is close to a NaN only, an infinity
/// to itself only.
inline bool is_close(double actual, double expected, double rtol, double atol) {
  if (std::isnan(actual) || std::isnan(expected)) return std::isnan(actual) && std::isnan(expected);
  if (std::isinf(actual) || std::isinf(expected)) return actual == expected;
  return std::abs(actual - expected) <= atol + rtol * std::abs(expected);
}

inline bool close(double actual, double expected, double rtol, double atol, const char* what,
                  const char* file, int line) {
  const bool passed = is_close(actual, expected, rtol, atol);
  return check(passed, file, line,
               passed ? std::string()
                      : std::string(what) + ": got " + show(actual) + ", expected " +
                            show(expected) + " (rtol " + show(rtol) + ", atol " + show(atol) + ")");
}

/// Compares two sequences of floating-point numbers by is_close; tells the first that differs and
/// the worst.
template <class A, class B>
bool all_close(const A& actual, const B& expected, double rtol, double atol, const char* what,
               const char* file, int line) {
  const std::size_t size = actual.size();
  if (size != expected.size()) {
    return check(
        false, file, line,
        std::string(what) + ": got " + show(size) + " elements, expected " + show(expected.size()));
  }
  std::size_t wrong = 0, first = 0, worst = 0;
  double largest = -1;
  for (std::size_t i = 0; i < size; ++i) {
    const auto a = static_cast<double>(actual[i]);
    const auto e = static_cast<double>(expected[i]);
    if (is_close(a, e, rtol, atol)) continue;
    if (wrong++ == 0) first = i;
    const double infinity = std::numeric_limits<double>::infinity();
    const double difference = std::isnan(a - e) ? infinity : std::abs(a - e);
    if (difference > largest) {
      largest = difference;
      worst = i;
    }
  }
  std::ostringstream text;
  if (wrong != 0) {
    text << what << ": " << wrong << " of " << size << " differ (rtol " << rtol << ", atol " << atol
         << ")";
    for (const std::size_t i : {first, worst}) {
      text << (i == first ? "; first at " : "; worst at ") << i << ": got " << show(actual[i])
           << ", expected " << show(expected[i]);
      if (first == worst) break;
    }
  }
  return check(wrong == 0, file, line, text.str());
}

/// Compares two sequences of trivially copyable elements byte by byte: -0 differs from 0, a NaN
/// equals itself.
template <class A, class B>
bool same_bits(const A& actual, const B& expected, const char* what, const char* file, int line) {
  using T = std::decay_t<decltype(actual[0])>;
  static_assert(std::is_same_v<T, std::decay_t<decltype(expected[0])>>, "different element types");
  static_assert(std::is_trivially_copyable_v<T>);
  const std::size_t size = actual.size();
  std::size_t wrong = 0, first = 0;
  if (size == expected.size()) {
    for (std::size_t i = 0; i < size; ++i) {
      if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0 && wrong++ == 0) first = i;
    }
  }
  std::ostringstream text;
  if (size != expected.size()) {
    text << what << ": got " << size << " elements, expected " << expected.size();
  } else if (wrong != 0) {
    text << what << ": " << wrong << " of " << size << " differ in their bits; at " << first
         << " got " << show(actual[first]) << ", expected " << show(expected[first]);
  }
  return check(size == expected.size() && wrong == 0, file, line, text.str());
}

/// Calls `action`, which must throw an Error whose message contains `part`.
template <class Error>
bool throws(const std::function<void()>& action, const std::string& part, const char* what,
            const char* file, int line) {
  std::string got = "no exception";
  try {
    action();
  } catch (const Error& error) {
    got = error.what();
    if (got.find(part) != std::string::npos) return check(true, file, line, "");
    got = "the message \"" + got + "\"";
  } catch (const std::exception& error) {
    got = "another exception, \"" + std::string(error.what()) + "\"";
  }
  return check(false, file, line,
               std::string(what) + ": got " + got + ", expected a message with \"" + part + "\"");
}

inline bool run_test(const Test& test) {
  Run& run = Run::instance();
  run.test = test.name;
  run.failures_here = 0;
  const std::size_t checks_before = run.checks;
  try {
    test.run();
    if (run.checks == checks_before) fail("(no file)", 0, "the test checked nothing");
  } catch (const EndOfTest&) {
  } catch (const std::exception& error) {
    fail("(no file)", 0, std::string("the test threw: ") + error.what());
  }
  Case::stack().clear();
  std::printf("%s %s (%zu checks)\n", run.failures_here == 0 ? "passed" : "FAILED", test.name,
              run.checks - checks_before);
  std::fflush(stdout);
  return run.failures_here == 0;
}

inline int main(int argc, char** argv) {
  Run& run = Run::instance();
  std::size_t ran = 0, failed = 0;
  for (const Test& test : run.tests) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) {
      if (std::strcmp(argv[i], "--list") == 0) std::printf("%s\n", test.name);
      wanted = wanted || std::strstr(test.name, argv[i]) != nullptr;
    }
    if (!wanted) continue;
    ++ran;
    if (!run_test(test)) ++failed;
  }
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) return 0;
  std::printf("%zu tests, %zu failed, %zu checks\n", ran, failed, run.checks.load());
  if (ran == 0) std::fprintf(stderr, "no test ran\n");
  return ran != 0 && failed == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                                  \
  static void test_##name();                                        \
  static const check::Register register_##name(#name, test_##name); \
  static void test_##name()

#define CHECK_MAIN() \
  int main(int argc, char** argv) { return check::main(argc, argv); }

/// The condition holds.
#define CHECK(...) \
  check::check(static_cast<bool>(__VA_ARGS__), __FILE__, __LINE__, "not true: " #__VA_ARGS__)

/// The condition holds, and without it the rest of the test makes no sense.
#define REQUIRE(...)                                   \
  do {                                                 \
    if (!CHECK(__VA_ARGS__)) throw check::EndOfTest{}; \
  } while (false)

/// actual == expected.
#define CHECK_EQ(actual, expected) \
  check::equal((actual), (expected), #actual " == " #expected, __FILE__, __LINE__)

/// Two numbers agree within atol + rtol * |expected|.
#define CHECK_CLOSE(actual, expected, rtol, atol) \
  check::close((actual), (expected), (rtol), (atol), #actual " near " #expected, __FILE__, __LINE__)

/// Two sequences of floating-point numbers agree within atol + rtol * |expected|.
#define CHECK_ALL_CLOSE(actual, expected, rtol, atol)                                          \
  check::all_close((actual), (expected), (rtol), (atol), #actual " near " #expected, __FILE__, \
                   __LINE__)

/// Two sequences have the same bits.
#define CHECK_SAME_BITS(actual, expected) \
  check::same_bits((actual), (expected), #actual " same as " #expected, __FILE__, __LINE__)

/// The statement throws an Error (or one derived from it) whose message contains `part`.
#define CHECK_THROWS(Error, part, ...) \
  check::throws<Error>([&] { __VA_ARGS__; }, (part), #__VA_ARGS__, __FILE__, __LINE__)
