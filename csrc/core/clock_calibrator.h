// Keeps a ClockMap up to date while a recording runs. Owned and called by the drain thread; not
// thread safe, the caller locks. Takes all time from its sampler, so that a test can supply a
// virtual clock.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/clock.h"
#include "core/clock_map.h"

namespace pertoken {

class ClockCalibrator {
 public:
  using Sampler = std::function<ClockSample()>;

  // Takes one sample, and so costs a microsecond.
  explicit ClockCalibrator(Sampler sampler = sample_clock);

  // To be called now and then, such as at every wake-up of the drain thread. Keeps a sample when
  // the interval since the last one has passed: 10 ms, after some samples 100 ms, 1 s and at last
  // 8 s.
  void sample();

  // The current map, from a sample taken now: call it after taking the records that are to be
  // converted, which are then all covered. Ticks <= settled_ticks() keep their value in every
  // later map. Waits for up to 2 ms, by spinning, when the calibrator is younger than that, since
  // no rate can be had from less; that first rate is known to some 25 parts per million. For as
  // long again, some times at most, where one of the two samples was far wider than the other.
  ClockMap map();

  // The scheduled samples that it holds, oldest first, and how many there ever were.
  std::span<const ClockSample> kept() const noexcept { return kept_; }
  uint64_t kept_count() const noexcept { return kept_count_; }

  // Ticks up to here are fixed: 0 before the first map.
  uint64_t settled_ticks() const noexcept { return settled_ticks_; }

  // Forgets the part of the map before the oldest tick that is still stored.
  void trim(uint64_t oldest_ticks);

 private:
  ClockSample take_sample();
  bool interval_passed(const ClockSample& now) const noexcept;
  void keep(const ClockSample& now);
  bool has_rate() const;
  std::vector<ClockSample> held() const;
  const ClockMap& refit(uint64_t settle_ticks);

  Sampler sampler_;
  std::vector<ClockSample> kept_;     // scheduled ones, oldest first
  std::optional<ClockSample> fresh_;  // of the last map(), until the next sample is taken
  uint64_t kept_count_ = 0;
  std::optional<ClockMap> map_;
  uint64_t settled_ticks_ = 0;
};

}  // namespace pertoken
