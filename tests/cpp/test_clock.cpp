// The clock: the choice of its source, and fits against invented clocks whose truth is known.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "check.h"
#include "core/clock.h"
#include "core/clock_map.h"
#include "virtual_clock.h"

using namespace pertoken;
using namespace pertoken::testing;

namespace {

std::vector<ClockSample> samples_every(VirtualClock& clock, uint64_t ticks, int n) {
  std::vector<ClockSample> samples;
  for (int i = 0; i < n; ++i) {
    samples.push_back(clock.sample());
    clock.advance(ticks);
  }
  return samples;
}

uint64_t first_ticks(const std::vector<ClockSample>& samples) {
  return samples.front().ticks_before;
}
uint64_t last_ticks(const std::vector<ClockSample>& samples) { return samples.back().ticks_after; }

double worst_error_ns(VirtualClock& clock, const ClockMap& map, uint64_t from, uint64_t to) {
  double worst = 0;
  for (int i = 0; i < 2000; ++i) {
    worst = std::max(worst, clock.error_ns(map, clock.random_between(from, to)));
  }
  return worst;
}

// At random places and their neighbours, in order; far outside the samples, too.
bool never_decreases(VirtualClock& clock, const ClockMap& map, uint64_t from, uint64_t to) {
  std::vector<uint64_t> ticks;
  for (int i = 0; i < 500; ++i) {
    const uint64_t at = clock.random_between(from - kSecond, to + kSecond);
    for (uint64_t next = 0; next < 4; ++next) ticks.push_back(at + next);
  }
  std::sort(ticks.begin(), ticks.end());
  for (size_t i = 1; i < ticks.size(); ++i) {
    if (map.to_ns(ticks[i - 1]) > map.to_ns(ticks[i])) return false;
  }
  return true;
}

}  // namespace

TEST(source_is_the_counter_only_where_it_is_invariant_and_not_unstable) {
  ClockFacts good;
  good.x86_64 = true;
  good.invariant_tsc = true;
  good.current_clocksource = "tsc";
  good.available_clocksources = "tsc hpet acpi_pm";
  CHECK(choose_clock(good).source == ClockSource::kTsc);
  const auto choice_with = [&](auto change) {
    ClockFacts facts = good;
    change(facts);
    const ClockChoice choice = choose_clock(facts);
    CHECK(std::strlen(choice.reason) > 10);
    return choice.source;
  };
  CHECK(choice_with([](ClockFacts& f) { f.invariant_tsc = false; }) == ClockSource::kSteady);
  CHECK(choice_with([](ClockFacts& f) { f.x86_64 = false; }) == ClockSource::kSteady);
  CHECK(choice_with([](ClockFacts& f) { f.tsc_forbidden = true; }) == ClockSource::kSteady);
  CHECK(choice_with([](ClockFacts& f) { f.current_clocksource = "kvm-clock"; }) ==
        ClockSource::kTsc);
  const auto unstable = [](ClockFacts& f) {
    f.current_clocksource = "hpet";
    f.available_clocksources = "hpet acpi_pm";
  };
  CHECK(choice_with(unstable) == ClockSource::kSteady);
  CHECK(choice_with([&](ClockFacts& f) {
          unstable(f);
          f.hypervisor = true;
        }) == ClockSource::kSteady);
  const auto unknown = [](ClockFacts& f) {
    f.current_clocksource.reset();
    f.available_clocksources.reset();
  };
  CHECK(choice_with(unknown) == ClockSource::kSteady);
  CHECK(choice_with([&](ClockFacts& f) {
          unknown(f);
          f.hypervisor = true;
        }) == ClockSource::kTsc);
  CHECK(choice_with([](ClockFacts& f) {
          f.current_clocksource = "hyperv_clocksource_tsc_page";
          f.available_clocksources = "hyperv_clocksource_tsc_page acpi_pm";
        }) == ClockSource::kSteady);
}

TEST(ticks_of_this_machine_advance_and_fit_its_boot_clock) {
  CHECK(std::strlen(clock_source_reason()) > 10);
  uint64_t last = now_ticks();
  for (int i = 0; i < 1000; ++i) {
    const ClockSample sample = sample_clock();
    CHECK(sample.ticks_before >= last);
    CHECK(sample.ticks_after >= sample.ticks_before);
    last = sample.ticks_after;
  }
  std::vector<ClockSample> samples;
  for (int i = 0; i < 5; ++i) {
    samples.push_back(sample_clock());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  samples.push_back(sample_clock());
  const ClockMap map = fit(samples);
  CHECK(map.error_bound_ns() < kClockErrorUnknown);
  for (const ClockSample& sample : samples) {
    CHECK(map.to_ns(sample.ticks_before) <= sample.boot_ns + map.error_bound_ns());
    CHECK(map.to_ns(sample.ticks_after) >= sample.boot_ns - map.error_bound_ns());
  }
  CHECK(unix_time_ns() > 1'600'000'000'000'000'000);
  CHECK(boot_time_ns() > 0);
}

TEST(fit_of_nothing_is_the_identity) {
  const ClockMap map = fit({});
  CHECK_EQ(map.to_ns(0), 0);
  CHECK_EQ(map.to_ns(123456789), 123456789);
  CHECK_EQ(map.error_bound_ns(), kClockErrorUnknown);
  CHECK_EQ(map.ticks_per_second(), 1e9);
  const ClockSample reversed{100, 5, 50};
  CHECK_EQ(fit({&reversed, 1}).to_ns(77), 77);
}

TEST(fit_of_one_sample_passes_through_it_at_the_nominal_rate) {
  const ClockSample sample{1000, 5'000'000, 1010};
  const ClockMap map = fit({&sample, 1}, 0.5);
  CHECK_EQ(map.to_ns(1005), 5'000'000);
  CHECK_EQ(map.to_ns(3005), 5'001'000);
  CHECK_EQ(map.to_ns(5), 5'000'000 - 500);
  CHECK_EQ(map.error_bound_ns(), kClockErrorUnknown);
}

TEST(fit_of_two_samples_is_the_line_through_them) {
  VirtualClock clock(steady_truth(120));
  const auto samples = samples_every(clock, 5 * kMillisecond, 2);
  const ClockMap map = fit(samples);
  CHECK(map.error_bound_ns() < 200);
  CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
        static_cast<double>(map.error_bound_ns()));
  CHECK(std::abs(map.ticks_per_second() / (kSecond / 1.00012) - 1) <= map.rate_error());
  CHECK(map.rate_error() < 1e-4);
}

TEST(fit_of_any_rate_holds_its_error_bound) {
  for (const double drift : {-200.0, -17.0, 0.0, 3.0, 200.0}) {
    for (const int n : {2, 3, 10, 100, 1000}) {
      VirtualClock clock(steady_truth(drift), static_cast<uint64_t>(n));
      // Not the first and the last, between which the bound is to hold.
      std::vector<ClockSample> samples{clock.sample()};
      clock.interrupt_one_in(10);
      clock.advance(10 * kMillisecond);
      const auto middle = samples_every(clock, 10 * kMillisecond, n - 2);
      samples.insert(samples.end(), middle.begin(), middle.end());
      clock.interrupt_one_in(0);
      samples.push_back(clock.sample());
      const ClockMap map = fit(samples);
      CHECK(map.error_bound_ns() < 300);
      CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
            static_cast<double>(map.error_bound_ns()));
      CHECK(std::abs(map.ticks_per_second() * (1 + 1e-6 * drift) / kSecond - 1) <=
            map.rate_error());
      CHECK(map.segments() <= 3);
      CHECK(never_decreases(clock, map, first_ticks(samples), last_ticks(samples)));
    }
  }
}

// Samples at random distances from a microsecond to eight seconds.
TEST(fit_of_samples_at_random_distances_holds_its_error_bound) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    VirtualClock clock(swinging_truth(2, 600), seed);
    std::vector<ClockSample> samples;
    for (int i = 0; i < 60; ++i) {
      samples.push_back(clock.sample());
      clock.advance(clock.random_between(1, 8) * kSecond >> clock.random_between(0, 23));
    }
    const ClockMap map = fit(samples);
    CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
          static_cast<double>(map.error_bound_ns()));
    CHECK(map.error_bound_ns() < 20'000);
    CHECK(never_decreases(clock, map, first_ticks(samples), last_ticks(samples)));
  }
}

TEST(fit_follows_slow_drift) {
  for (const double swing : {0.05, 1.0, 20.0}) {
    VirtualClock clock(swinging_truth(swing, 1800));
    const auto samples = samples_every(clock, kSecond, 3600);
    const ClockMap map = fit(samples);
    CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
          static_cast<double>(map.error_bound_ns()));
    CHECK(map.error_bound_ns() < 1000);
    CHECK(never_decreases(clock, map, first_ticks(samples), last_ticks(samples)));
  }
}

// A suspend: the boot clock goes on, the ticks do not.
TEST(fit_follows_a_step_ahead) {
  for (const long double step : {1e6L, 2e9L, 6e12L}) {
    const uint64_t at = kStartTicks + 505 * kMillisecond;
    VirtualClock clock(stepped(steady_truth(50), at, step));
    const auto samples = samples_every(clock, 10 * kMillisecond, 100);
    const ClockMap map = fit(samples);
    CHECK_EQ(map.steps(), 1u);
    CHECK(std::abs(static_cast<long double>(map.largest_step_ns()) - step) < 2e4L);
    CHECK(map.error_bound_ns() < 300);
    const double bound = static_cast<double>(map.error_bound_ns());
    CHECK(worst_error_ns(clock, map, first_ticks(samples), at - 10 * kMillisecond) <= bound);
    CHECK(worst_error_ns(clock, map, at + 10 * kMillisecond, last_ticks(samples)) <= bound);
    CHECK(never_decreases(clock, map, first_ticks(samples), last_ticks(samples)));
  }
}

// Never backward: the map runs slower until the boot clock has caught up, and says so.
TEST(fit_goes_slower_after_a_step_back) {
  const uint64_t at = kStartTicks + 505 * kMillisecond;
  VirtualClock clock(stepped(steady_truth(-30), at, -2e8L));
  const auto samples = samples_every(clock, 10 * kMillisecond, 150);
  const ClockMap map = fit(samples);
  CHECK_EQ(map.steps(), 1u);
  CHECK(never_decreases(clock, map, first_ticks(samples), last_ticks(samples)));
  CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
        static_cast<double>(map.error_bound_ns()));
  CHECK(map.error_bound_ns() > 100'000'000);
  for (uint64_t ticks = first_ticks(samples); ticks < last_ticks(samples); ticks += kMillisecond) {
    CHECK(map.to_ns(ticks + kMillisecond) - map.to_ns(ticks) > 499'000);
  }
  CHECK(clock.error_ns(map, last_ticks(samples)) < 200);
}

// A small step, or a change of rate, somewhere between two distant samples, looks like a slew: what
// it can be off in that gap is in the bound.
TEST(fit_bounds_what_may_have_happened_between_samples) {
  for (const long double step : {-2e6L, 3e5L, 2e6L}) {
    for (const uint64_t place : {1, 4, 7}) {
      const uint64_t at = kStartTicks + 10 * 8 * kSecond + place * kSecond;
      VirtualClock clock(stepped(steady_truth(10), at, step));
      const auto samples = samples_every(clock, 8 * kSecond, 20);
      const ClockMap map = fit(samples);
      CHECK_EQ(map.steps(), 0u);
      CHECK(worst_error_ns(clock, map, first_ticks(samples), last_ticks(samples)) <=
            static_cast<double>(map.error_bound_ns()));
      CHECK(static_cast<long double>(map.error_bound_ns()) < 1.1L * std::abs(step));
    }
  }
}

// A bracket that was interrupted tells little, and a sample that both neighbours contradict is
// wrong: either changes nothing.
TEST(fit_leaves_outliers_out) {
  VirtualClock clock(steady_truth(75));
  const auto clean = samples_every(clock, 10 * kMillisecond, 60);
  const ClockMap expected = fit(clean);
  for (size_t at = 1; at + 1 < clean.size(); at += 7) {
    auto wide = clean;
    wide[at].ticks_after += 5 * kMillisecond;
    wide[at].boot_ns += 1'900'000;
    const ClockMap without_wide = fit(wide);
    CHECK_EQ(without_wide.steps(), 0u);
    CHECK(without_wide.error_bound_ns() <= expected.error_bound_ns() + 50);
    for (const int64_t wrong :
         {int64_t{-40'000'000}, int64_t{-50'000}, int64_t{50'000}, int64_t{3'000'000'000}}) {
      auto spiked = clean;
      spiked[at].boot_ns += wrong;
      const ClockMap without_spike = fit(spiked);
      CHECK_EQ(without_spike.steps(), 0u);
      CHECK(without_spike.error_bound_ns() <= expected.error_bound_ns() + 50);
      CHECK(worst_error_ns(clock, without_spike, first_ticks(clean), last_ticks(clean)) <=
            static_cast<double>(without_spike.error_bound_ns()));
    }
  }
}

TEST(fit_does_not_depend_on_the_order_of_samples) {
  VirtualClock clock(swinging_truth(5, 60));
  auto samples = samples_every(clock, kSecond / 4, 200);
  const ClockMap sorted = fit(samples);
  std::shuffle(samples.begin(), samples.end(), std::mt19937_64(3));
  const ClockMap shuffled = fit(samples);
  CHECK_EQ(sorted.segments(), shuffled.segments());
  for (int i = 0; i < 1000; ++i) {
    const uint64_t ticks = clock.random_between(kStartTicks - kSecond, clock.now() + kSecond);
    CHECK_EQ(sorted.to_ns(ticks), shuffled.to_ns(ticks));
  }
}

TEST(conversion_rounds_down_and_saturates) {
  const ClockSample samples[] = {{0, -10, 0}, {4, -9, 4}};
  const ClockMap map = fit(samples);
  const int64_t expected[] = {-10, -10, -10, -10, -9, -9, -9, -9, -8};
  for (uint64_t ticks = 0; ticks < 9; ++ticks) CHECK_EQ(map.to_ns(ticks), expected[ticks]);
  for (uint64_t ticks = 1; ticks < 100; ++ticks) CHECK(map.to_ns(ticks - 1) <= map.to_ns(ticks));
  const ClockSample fast{0, 0, 0};
  const ClockMap far = fit({&fast, 1}, 8000.0);
  CHECK_EQ(far.to_ns(UINT64_MAX), std::numeric_limits<int64_t>::max());
  const ClockSample late{UINT64_MAX, 0, UINT64_MAX};
  CHECK_EQ(fit({&late, 1}, 8000.0).to_ns(0), std::numeric_limits<int64_t>::min());
}

// Any numbers: no overflow (the undefined-behaviour sanitizer watches), never decreasing.
TEST(fit_of_nonsense_still_never_decreases) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 500; ++round) {
    std::vector<ClockSample> samples;
    for (int i = 0; i < 12; ++i) {
      const uint64_t before = random() >> (random() % 64);
      const uint64_t after = before + (random() >> (random() % 64));
      samples.push_back({before, static_cast<int64_t>(random()) >> (random() % 64), after});
    }
    ClockMap map = fit(samples);
    if (round % 2 == 1) map = extend(map, samples, random() >> (random() % 64));
    std::vector<uint64_t> ticks;
    for (int i = 0; i < 200; ++i) ticks.push_back(random() >> (random() % 64));
    std::sort(ticks.begin(), ticks.end());
    for (size_t i = 1; i < ticks.size(); ++i) {
      CHECK(map.to_ns(ticks[i - 1]) <= map.to_ns(ticks[i]));
    }
  }
}
