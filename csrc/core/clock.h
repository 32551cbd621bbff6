// Time: raw ticks for the hot path, and reads of the system's clocks. now_ticks() is called from
// any thread, at every record; everything else here is cold. Ticks become nanoseconds later, by a
// ClockMap (clock_map.h), which a ClockCalibrator (clock_calibrator.h) keeps up to date.
#pragma once

#include <time.h>

#include <cstdint>
#include <optional>
#include <string>

#include "core/clock_map.h"

namespace pertoken {

enum class ClockSource : uint8_t { kTsc, kSteady };

// Decided once, when the library is loaded.
ClockSource clock_source() noexcept;
// A sentence for people: why this source.
const char* clock_source_reason() noexcept;

// What the choice depends on, as found on this machine; lists are the kernel's, nullopt where they
// cannot be read.
struct ClockFacts {
  bool x86_64 = false;
  bool invariant_tsc = false;
  bool hypervisor = false;
  bool tsc_forbidden = false;  // prctl(PR_SET_TSC): reading it would kill the process
  std::optional<std::string> current_clocksource;
  std::optional<std::string> available_clocksources;
};

struct ClockChoice {
  ClockSource source;
  const char* reason;  // a literal
};

ClockChoice choose_clock(const ClockFacts& facts);

int64_t boot_time_ns() noexcept;  // CLOCK_BOOTTIME: counts a suspend, is never set
int64_t unix_time_ns() noexcept;  // CLOCK_REALTIME

// The narrowest of several reads of the boot clock, each between two tick reads.
ClockSample sample_clock() noexcept;

namespace detail {

inline int64_t read_clock_ns(clockid_t clock) noexcept {
  timespec now;
  clock_gettime(clock, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

// An inline variable, so that it is set before any static of a file that includes this header.
inline const bool ticks_are_tsc = clock_source() == ClockSource::kTsc;

}  // namespace detail

// Ticks of clock_source(). Comparable between threads. Not a fence: the processor may move the
// read by the length of its instruction window, some nanoseconds.
inline uint64_t now_ticks() noexcept {
#if defined(__x86_64__)
  if (detail::ticks_are_tsc) [[likely]]
    return __builtin_ia32_rdtsc();  // __rdtsc() would have every file read all of <x86intrin.h>
#endif
  return static_cast<uint64_t>(detail::read_clock_ns(CLOCK_MONOTONIC));
}

}  // namespace pertoken
