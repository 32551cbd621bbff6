// The choice of the tick source, and bracketed reads of both clocks. Cold.
#include "core/clock.h"

#include <fstream>
#include <sstream>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/prctl.h>
#include <x86intrin.h>
#endif

namespace pertoken {
namespace {

constexpr int kReadsPerSample = 8;

std::optional<std::string> read_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

bool has_word(const std::string& line, const std::string& word) {
  std::istringstream words(line);
  std::string each;
  while (words >> each) {
    if (each == word) return true;
  }
  return false;
}

ClockFacts find_facts() {
  ClockFacts facts;
#if defined(__x86_64__)
  facts.x86_64 = true;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0x80000007, &a, &b, &c, &d) != 0) facts.invariant_tsc = (d >> 8 & 1) != 0;
  if (__get_cpuid(1, &a, &b, &c, &d) != 0) facts.hypervisor = (c >> 31 & 1) != 0;
  int tsc_mode = PR_TSC_ENABLE;
  facts.tsc_forbidden = prctl(PR_GET_TSC, &tsc_mode) == 0 && tsc_mode == PR_TSC_SIGSEGV;
#endif
  const std::string folder = "/sys/devices/system/clocksource/clocksource0/";
  facts.current_clocksource = read_line((folder + "current_clocksource").c_str());
  facts.available_clocksources = read_line((folder + "available_clocksource").c_str());
  return facts;
}

const ClockChoice& choice() noexcept {
  static const ClockChoice chosen = []() -> ClockChoice {
    try {
      return choose_clock(find_facts());
    } catch (...) {
      return {ClockSource::kSteady, "the clock's facts could not be read: out of memory"};
    }
  }();
  return chosen;
}

// Unlike now_ticks(): in program order with the clock read that it brackets.
uint64_t ordered_ticks() noexcept {
#if defined(__x86_64__)
  if (detail::ticks_are_tsc) {
    _mm_lfence();
    const uint64_t ticks = __rdtsc();
    _mm_lfence();
    return ticks;
  }
#endif
  return now_ticks();
}

}  // namespace

ClockChoice choose_clock(const ClockFacts& facts) {
  const auto steady = [](const char* reason) { return ClockChoice{ClockSource::kSteady, reason}; };
  if (!facts.x86_64) return steady("not an x86-64 processor");
  if (facts.tsc_forbidden) return steady("this process may not read the time stamp counter");
  if (!facts.invariant_tsc) return steady("CPUID does not report an invariant time stamp counter");
  if (facts.current_clocksource && has_word(*facts.current_clocksource, "tsc")) {
    return {ClockSource::kTsc, "invariant time stamp counter, in use by the kernel"};
  }
  // The kernel takes a counter that it has found unstable off this list.
  if (facts.available_clocksources) {
    if (has_word(*facts.available_clocksources, "tsc")) {
      return {ClockSource::kTsc, "invariant time stamp counter, listed by the kernel"};
    }
    return steady("the kernel does not list the time stamp counter as a clock source");
  }
  if (facts.hypervisor) {
    return {ClockSource::kTsc, "invariant time stamp counter, vouched for by the hypervisor"};
  }
  return steady("the kernel's clock sources cannot be read, so the counter is not known stable");
}

ClockSource clock_source() noexcept { return choice().source; }

const char* clock_source_reason() noexcept { return choice().reason; }

int64_t boot_time_ns() noexcept { return detail::read_clock_ns(CLOCK_BOOTTIME); }

int64_t unix_time_ns() noexcept { return detail::read_clock_ns(CLOCK_REALTIME); }

ClockSample sample_clock() noexcept {
  ClockSample best{};
  for (int i = 0; i < kReadsPerSample; ++i) {
    ClockSample sample{};
    sample.ticks_before = ordered_ticks();
    sample.boot_ns = boot_time_ns();
    sample.ticks_after = ordered_ticks();
    // Of equally narrow ones the latest.
    if (i == 0 ||
        sample.ticks_after - sample.ticks_before <= best.ticks_after - best.ticks_before) {
      best = sample;
    }
  }
  return best;
}

}  // namespace pertoken
