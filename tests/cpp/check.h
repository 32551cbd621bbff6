// The test harness of the C++ tests: TEST(name) { CHECK(...); }, one executable from one or more
// such files, with main() included. A failed check is printed and counted, and the test goes on.
// Single-threaded: tests that start threads check on the main thread, after joining them.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace pertoken::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline long checks_done = 0;
inline long checks_failed = 0;

inline bool add_test(const char* name, void (*run)()) {
  tests().push_back({name, run});
  return true;
}

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  out.precision(17);
  if constexpr (requires { out << value; }) {
    // Characters and bytes print as the numbers they are used as here.
    if constexpr (sizeof(T) == 1 && requires { +value; }) {
      out << +value;
    } else {
      out << std::boolalpha << value;
    }
  } else {
    out << "(value of " << sizeof(T) << " bytes)";
  }
  return out.str();
}

// Out of line and cold, so that the compiler spends little on each of thousands of checks.
[[gnu::noinline, gnu::cold]] inline void fail(const char* file, int line, const std::string& what) {
  ++checks_failed;
  std::cerr << file << ":" << line << ": " << what << "\n";
}

[[gnu::noinline, gnu::cold]] inline void fail(const char* file, int line, const char* what) {
  fail(file, line, std::string(what));
}

template <typename Actual, typename Expected>
[[gnu::noinline, gnu::cold]] void fail_equal(const char* file, int line, const char* what,
                                             const Actual& actual, const Expected& expected) {
  fail(file, line, std::string(what) + ": " + show(actual) + " is not " + show(expected));
}

inline int run_tests(int argc, char** argv) {
  std::string filter;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--filter") == 0 && i + 1 < argc) {
      filter = argv[++i];
    } else {
      std::cerr << "usage: " << argv[0] << " [--filter PART_OF_NAME]\n";
      return 2;
    }
  }
  int ran = 0;
  int failed = 0;
  for (const Test& test : tests()) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    ++ran;
    const long failed_before = checks_failed;
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, std::string("threw: ") + error.what());
    } catch (...) {
      fail(test.name, 0, "threw something that is not a std::exception");
    }
    if (checks_failed == failed_before) continue;
    ++failed;
    std::cerr << "FAILED " << test.name << "\n";
  }
  std::cout << ran - failed << " of " << ran << " tests passed, " << checks_done << " checks, "
            << checks_failed << " failed\n";
  return (failed != 0 || ran == 0) ? 1 : 0;
}

}  // namespace pertoken::testing

#define TEST(name)                                         \
  static void test_##name();                               \
  [[maybe_unused]] static const bool test_##name##_added = \
      ::pertoken::testing::add_test(#name, &test_##name);  \
  static void test_##name()

#define CHECK(condition)                                                      \
  do {                                                                        \
    ++::pertoken::testing::checks_done;                                       \
    if (!static_cast<bool>(condition)) {                                      \
      ::pertoken::testing::fail(__FILE__, __LINE__, "CHECK(" #condition ")"); \
    }                                                                         \
  } while (false)

#define CHECK_EQ(actual, expected)                                                                \
  do {                                                                                            \
    const auto& check_actual = (actual);                                                          \
    const auto& check_expected = (expected);                                                      \
    ++::pertoken::testing::checks_done;                                                           \
    if (!(check_actual == check_expected)) {                                                      \
      ::pertoken::testing::fail_equal(__FILE__, __LINE__, "CHECK_EQ(" #actual ", " #expected ")", \
                                      check_actual, check_expected);                              \
    }                                                                                             \
  } while (false)

// Weak, so that files of tests may be built each on its own or linked into one executable.
[[gnu::weak]] int main(int argc, char** argv) { return ::pertoken::testing::run_tests(argc, argv); }
