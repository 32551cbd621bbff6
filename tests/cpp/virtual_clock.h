// A clock that tests invent: the boot time as a function of the tick, and bracketed reads of it.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>

#include "core/clock_map.h"

namespace pertoken::testing {

inline constexpr uint64_t kSecond = 2'600'000'000;  // ticks
inline constexpr uint64_t kMillisecond = kSecond / 1000;

// Boot time at a tick, in nanoseconds; never decreases but where a test says so.
using Truth = std::function<long double(uint64_t)>;

inline constexpr long double kBootNs = 3e14L;  // up for some days
inline constexpr uint64_t kStartTicks = 900'000'000'000'000;

// A constant rate, `parts_per_million` above nominal.
inline Truth steady_truth(double parts_per_million) {
  return [=](uint64_t ticks) {
    const long double elapsed = static_cast<long double>(ticks) - kStartTicks;
    return kBootNs + elapsed * (1e9L / kSecond) * (1.0L + 1e-6L * parts_per_million);
  };
}

// The rate swings by `parts_per_million` either way, as by temperature.
inline Truth swinging_truth(double parts_per_million, double period_s) {
  return [=](uint64_t ticks) {
    const long double seconds = (static_cast<long double>(ticks) - kStartTicks) / kSecond;
    const long double turn = 2 * 3.14159265358979323846L / period_s;
    const long double swing = 1e-6L * parts_per_million / turn * std::sin(turn * seconds);
    return kBootNs + 1e9L * (seconds + swing);
  };
}

// Ahead (or, negative, behind) by step_ns from a tick on.
inline Truth stepped(Truth truth, uint64_t at_ticks, long double step_ns) {
  return [=](uint64_t ticks) { return truth(ticks) + (ticks >= at_ticks ? step_ns : 0.0L); };
}

class VirtualClock {
 public:
  explicit VirtualClock(Truth truth, uint64_t seed = 1) : truth_(std::move(truth)), random_(seed) {}

  uint64_t now() const { return now_; }
  void advance(uint64_t ticks) { now_ += ticks; }
  // Every so often a read is interrupted for up to a tenth of a millisecond.
  void interrupt_one_in(unsigned n) { interrupt_one_in_ = n; }

  ClockSample sample() {
    ClockSample sample{};
    sample.ticks_before = now_;
    advance(pause());
    sample.boot_ns = static_cast<int64_t>(std::floor(truth_(now_)));
    advance(pause());
    sample.ticks_after = now_;
    return sample;
  }

  double error_ns(const ClockMap& map, uint64_t ticks) const {
    return static_cast<double>(
        std::abs(static_cast<long double>(map.to_ns(ticks)) - truth_(ticks)));
  }

  uint64_t random_between(uint64_t low, uint64_t high) {
    return std::uniform_int_distribution<uint64_t>(low, high)(random_);
  }

 private:
  uint64_t pause() {
    const bool interrupted = interrupt_one_in_ != 0 && random_() % interrupt_one_in_ == 0;
    return interrupted ? random_between(2000, kMillisecond / 10) : random_between(30, 80);
  }

  Truth truth_;
  std::mt19937_64 random_;
  uint64_t now_ = kStartTicks;
  unsigned interrupt_one_in_ = 0;
};

}  // namespace pertoken::testing
