// Refits in long runs: extend, trim and the calibrator, against invented clocks.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"
#include "core/clock_calibrator.h"
#include "core/clock_map.h"
#include "virtual_clock.h"

using namespace pertoken;
using namespace pertoken::testing;

namespace {

struct Mapped {
  uint64_t ticks;
  int64_t ns;
};

Truth random_truth(uint64_t seed) {
  std::mt19937_64 random(seed);
  Truth truth = seed % 2 == 0 ? steady_truth(static_cast<double>(random() % 400) - 200.0)
                              : swinging_truth(static_cast<double>(random() % 30), 300);
  if (seed % 3 == 0) truth = stepped(truth, kStartTicks + random() % (200 * kSecond), 5e8L);
  if (seed % 5 == 0) truth = stepped(truth, kStartTicks + random() % (200 * kSecond), -3e6L);
  return truth;
}

}  // namespace

TEST(extend_changes_nothing_up_to_the_given_tick_and_is_continuous_there) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    VirtualClock clock(random_truth(seed), seed);
    clock.interrupt_one_in(15);
    std::vector<ClockSample> samples;
    ClockMap map;
    for (int round = 0; round < 40; ++round) {
      const int fresh = static_cast<int>(clock.random_between(round == 0 ? 1 : 0, 4));
      for (int i = 0; i < fresh; ++i) {
        clock.advance(clock.random_between(1, 8) * kSecond >> clock.random_between(0, 20));
        samples.push_back(clock.sample());
      }
      if (samples.size() > 16) samples.erase(samples.begin(), samples.end() - 16);
      if (round == 0) map = fit(samples);
      // Before, among and after the samples, or just before one.
      const uint64_t from =
          round % 2 == 0 ? clock.random_between(clock.now() - 10 * kSecond, clock.now() + kSecond)
                         : samples[clock.random_between(0, samples.size() - 1)].ticks_before - 1000;
      const ClockMap extended = extend(map, samples, from);
      for (int i = 0; i < 200; ++i) {
        const uint64_t ticks = from - (clock.random_between(0, 20 * kSecond) >> (i % 32));
        CHECK_EQ(extended.to_ns(ticks), map.to_ns(ticks));
      }
      // From there on it goes up, without a jump: the steepest segment makes a tick 2^18 ns.
      CHECK(extended.to_ns(from + 1) - extended.to_ns(from) <= (1 << 18) + 1);
      int64_t last = map.to_ns(from);
      for (int bit = 0; bit < 35; ++bit) {
        const int64_t next = extended.to_ns(from + (uint64_t{1} << bit));
        CHECK(next >= last);
        last = next;
      }
      map = extended;
    }
  }
}

// The whole promise: intervals recorded in ticks, nested at random, converted by whatever map was
// current when they had ended, never cross; and no settled tick ever changes.
TEST(nested_intervals_never_cross_after_any_number_of_refits) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    VirtualClock clock(random_truth(seed), seed);
    clock.interrupt_one_in(20);
    ClockCalibrator calibrator([&clock] { return clock.sample(); });
    std::vector<Mapped> mapped;
    for (int round = 0; round < 60; ++round) {
      std::vector<uint64_t> ticks;
      const uint64_t pace = clock.random_between(0, 26);
      for (int i = 0; i < 20; ++i) {
        ticks.push_back(clock.now());
        clock.advance((clock.random_between(1, 8) * kSecond >> pace) / 8);
        if (clock.random_between(0, 3) == 0) calibrator.sample();
      }
      const ClockMap map = calibrator.map();
      CHECK(calibrator.settled_ticks() >= ticks.back());
      for (const Mapped& before : mapped) CHECK_EQ(map.to_ns(before.ticks), before.ns);
      // Neighbouring ticks are the tightest nesting there is.
      for (const uint64_t each : ticks) {
        for (uint64_t next = 0; next < 3; ++next) {
          mapped.push_back({each + next, map.to_ns(each + next)});
        }
      }
    }
    std::sort(mapped.begin(), mapped.end(),
              [](const Mapped& a, const Mapped& b) { return a.ticks < b.ticks; });
    for (size_t i = 1; i < mapped.size(); ++i) CHECK(mapped[i - 1].ns <= mapped[i].ns);
  }
}

// What the map had planned beyond the tick is gone, even where it began just after it.
TEST(extend_replaces_the_old_course) {
  std::vector<ClockSample> samples;
  for (int i = 0; i < 10; ++i) {
    const uint64_t ticks = kStartTicks + static_cast<uint64_t>(i) * 1'000'000;
    samples.push_back({ticks, i * 1'000'000 + std::max(0, i - 5) * 500, ticks});
  }
  const ClockMap map = fit(samples);
  CHECK(map.segments() >= 2);
  for (size_t i = 6; i < 10; ++i) samples[i].boot_ns += 3000;
  const uint64_t from = samples[5].ticks_before - 400'000;
  const ClockMap extended = extend(map, samples, from);
  for (size_t i = 0; i < 10; ++i) {
    CHECK(std::abs(extended.to_ns(samples[i].ticks_before) - samples[i].boot_ns) < 50);
  }
  for (uint64_t ticks = from - 1000; ticks < from + 3'000'000; ticks += 50) {
    const int64_t rise = extended.to_ns(ticks + 50) - extended.to_ns(ticks);
    CHECK(rise >= 50 && rise <= 51);
  }
}

TEST(extend_meets_the_line_gently_from_beyond_the_samples) {
  VirtualClock clock(steady_truth(0));
  std::vector<ClockSample> early;
  for (int i = 0; i < 10; ++i) {
    early.push_back(clock.sample());
    clock.advance(kMillisecond);
  }
  const ClockMap map = fit(early);
  auto late = early;
  for (ClockSample& sample : late) sample.boot_ns += 50'000;
  const uint64_t from = clock.now() + kMillisecond;
  const ClockMap extended = extend(map, late, from);
  const double offset = 50'000;
  CHECK(std::abs(clock.error_ns(extended, from + kSecond) - offset) < 1000);
  const double made_up =
      static_cast<double>(extended.to_ns(from + kMillisecond) - map.to_ns(from + kMillisecond));
  CHECK(made_up > 900 && made_up < 1100);
}

TEST(extend_of_an_uncalibrated_map_reaches_the_truth) {
  VirtualClock clock(steady_truth(20));
  const ClockSample first = clock.sample();
  const ClockMap map = fit({&first, 1}, 1e9 / kSecond);
  std::vector<ClockSample> samples{first};
  for (int i = 0; i < 10; ++i) {
    clock.advance(100 * kMillisecond);
    samples.push_back(clock.sample());
  }
  const ClockMap extended = extend(map, samples, first.ticks_after);
  CHECK(clock.error_ns(extended, samples.back().ticks_before) < 100);
  CHECK(std::abs(extended.ticks_per_second() * 1.00002 / kSecond - 1) < 1e-6);
}

TEST(extend_without_samples_is_the_same_map) {
  VirtualClock clock(steady_truth(20));
  const ClockSample samples[] = {clock.sample(), (clock.advance(kSecond), clock.sample())};
  const ClockMap map = fit(samples);
  const ClockMap same = extend(map, {}, clock.now());
  CHECK_EQ(same.segments(), map.segments());
  CHECK_EQ(same.to_ns(clock.now() + kSecond), map.to_ns(clock.now() + kSecond));
}

TEST(trim_leaves_what_is_at_and_after_the_tick) {
  VirtualClock clock(swinging_truth(30, 120));
  std::vector<ClockSample> samples;
  for (int i = 0; i < 600; ++i) {
    samples.push_back(clock.sample());
    clock.advance(kSecond);
  }
  const ClockMap map = fit(samples);
  CHECK(map.segments() > 20);
  for (int i = 0; i < 50; ++i) {
    const uint64_t oldest = clock.random_between(kStartTicks - kSecond, clock.now() + kSecond);
    const ClockMap trimmed = trim(map, oldest);
    CHECK(trimmed.segments() <= map.segments());
    CHECK(trimmed.error_bound_ns() <= map.error_bound_ns());
    CHECK_EQ(trimmed.to_ns(oldest), map.to_ns(oldest));
    for (int k = 0; k < 100; ++k) {
      const uint64_t ticks = clock.random_between(oldest, clock.now() + 2 * kSecond);
      CHECK_EQ(trimmed.to_ns(ticks), map.to_ns(ticks));
    }
  }
  CHECK_EQ(trim(map, UINT64_MAX).segments(), 1u);
  CHECK_EQ(trim(map, 0).segments(), map.segments());
}

// Some 15 virtual seconds of a busy drain thread.
TEST(calibrator_holds_its_error_bound_from_the_first_millisecond_on) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    VirtualClock clock(seed % 2 == 0 ? steady_truth(150) : swinging_truth(5, 300), seed);
    clock.interrupt_one_in(12);
    ClockCalibrator calibrator([&clock] { return clock.sample(); });
    const uint64_t start = clock.now();
    clock.advance(clock.random_between(0, 20) * kMillisecond / 4);
    for (int i = 0; i < 3000; ++i) {
      clock.advance(clock.random_between(1, 10 * kMillisecond));
      calibrator.sample();
      if (i % 100 != 99) continue;
      const ClockMap map = calibrator.map();
      const double bound = static_cast<double>(map.error_bound_ns());
      CHECK(bound < 2000);
      for (int k = 0; k < 50; ++k) {
        CHECK(clock.error_ns(map, clock.random_between(start, clock.now())) <= bound);
      }
    }
  }
}

TEST(calibrator_waits_for_a_short_baseline_only) {
  VirtualClock clock(steady_truth(0));
  int reads = 0;
  ClockCalibrator calibrator([&] {
    ++reads;
    clock.advance(kMillisecond / 1000);
    return clock.sample();
  });
  CHECK_EQ(reads, 1);
  const uint64_t before = clock.now();
  const ClockMap map = calibrator.map();
  CHECK(clock.now() - before < 3 * kMillisecond);
  CHECK(map.rate_error() < 50e-6);
  CHECK(std::abs(map.ticks_per_second() / kSecond - 1) <= map.rate_error());
  const int reads_before = reads;
  calibrator.map();
  CHECK(reads - reads_before <= 4);
}

TEST(a_first_sample_that_was_held_up_leaves_the_rate_known) {
  VirtualClock clock(steady_truth(0));
  int reads = 0;
  ClockCalibrator calibrator([&] {
    ClockSample sample = clock.sample();
    if (++reads > 1) return sample;
    clock.advance(kMillisecond / 100);
    sample.ticks_after = clock.now();
    return sample;
  });
  const ClockMap map = calibrator.map();
  CHECK(map.error_bound_ns() < 1000);
  CHECK(map.rate_error() < 100e-6);
  CHECK(std::abs(map.ticks_per_second() / kSecond - 1) <= map.rate_error());
}

TEST(calibrator_survives_a_clock_that_stands_still) {
  ClockCalibrator calibrator([] { return ClockSample{1000, 77, 1000}; });
  const ClockMap map = calibrator.map();
  CHECK_EQ(map.to_ns(1000), 77);
  CHECK_EQ(map.error_bound_ns(), kClockErrorUnknown);
  CHECK_EQ(calibrator.map().to_ns(1000), 77);
}

// Three weeks with a daily swing of the temperature, a map every minute, an hour of ticks stored.
TEST(weeks_with_trim_stay_small_and_true) {
  VirtualClock clock(swinging_truth(3, 86400), 9);
  clock.interrupt_one_in(50);
  ClockCalibrator calibrator([&clock] { return clock.sample(); });
  const uint64_t hour = 3600 * kSecond;
  size_t most_segments = 0;
  int64_t worst_bound = 0;
  for (int minute = 0; minute < 3 * 7 * 24 * 60; ++minute) {
    for (int i = 0; i < 6; ++i) {
      clock.advance(10 * kSecond);
      calibrator.sample();
    }
    const ClockMap map = calibrator.map();
    const uint64_t oldest = std::max(kStartTicks, clock.now() - hour);
    calibrator.trim(oldest);
    const double bound = static_cast<double>(map.error_bound_ns());
    most_segments = std::max(most_segments, map.segments());
    if (minute > 60) worst_bound = std::max(worst_bound, map.error_bound_ns());
    if (minute % 20 != 0) continue;
    for (int k = 0; k < 20; ++k) {
      CHECK(clock.error_ns(map, clock.random_between(oldest, clock.now())) <= bound);
    }
  }
  CHECK(most_segments < 2000);
  CHECK(worst_bound < 1000);
}

// The truth runs at another rate from some moment on, as after a virtual machine has moved.
TEST(calibrator_takes_up_a_new_rate) {
  const Truth before = steady_truth(0);
  const uint64_t moved = kStartTicks + 60 * kSecond;
  VirtualClock clock([=](uint64_t ticks) {
    if (ticks < moved) return before(ticks);
    return before(moved) + (before(ticks) - before(moved)) * 1.07L;
  });
  ClockCalibrator calibrator([&clock] { return clock.sample(); });
  int64_t last = 0;
  for (int i = 0; i < 600; ++i) {
    clock.advance(kSecond);
    calibrator.sample();
    const ClockMap map = calibrator.map();
    CHECK(map.to_ns(clock.now()) > last);
    last = map.to_ns(clock.now());
  }
  const ClockMap map = calibrator.map();
  CHECK(clock.error_ns(map, clock.now()) < 300);
  CHECK(std::abs(map.ticks_per_second() * 1.07 / kSecond - 1) < 1e-6);
}
