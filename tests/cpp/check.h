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

inline void check(bool ok, const char* file, int line, const std::string& what) {
  ++checks_done;
  if (ok) return;
  ++checks_failed;
  std::cerr << file << ":" << line << ": " << what << "\n";
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
      check(false, test.name, 0, std::string("threw: ") + error.what());
    } catch (...) {
      check(false, test.name, 0, "threw something that is not a std::exception");
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

#define CHECK(condition)                                                       \
  ::pertoken::testing::check(static_cast<bool>(condition), __FILE__, __LINE__, \
                             "CHECK(" #condition ")")

#define CHECK_EQ(actual, expected)                                                                 \
  do {                                                                                             \
    const auto& check_actual = (actual);                                                           \
    const auto& check_expected = (expected);                                                       \
    const bool check_ok = (check_actual == check_expected);                                        \
    ::pertoken::testing::check(                                                                    \
        check_ok, __FILE__, __LINE__,                                                              \
        check_ok                                                                                   \
            ? std::string()                                                                        \
            : "CHECK_EQ(" #actual ", " #expected "): " + ::pertoken::testing::show(check_actual) + \
                  " is not " + ::pertoken::testing::show(check_expected));                         \
  } while (false)

// Weak, so that files of tests may be built each on its own or linked into one executable.
[[gnu::weak]] int main(int argc, char** argv) { return ::pertoken::testing::run_tests(argc, argv); }
