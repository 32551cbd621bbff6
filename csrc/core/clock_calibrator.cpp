#include "core/clock_calibrator.h"

#include <algorithm>
#include <utility>

namespace pertoken {
namespace {

constexpr int64_t kIntervalsNs[] = {10'000'000, 100'000'000, 1'000'000'000, 8'000'000'000};
constexpr uint64_t kSamplesPerInterval = 8;
constexpr size_t kSamplesKept = 32;
// Two brackets of some 50 ns give the rate to 25 parts per million over this baseline. The
// frequencies that CPUID leaves 0x15 and 0x16 state are no better: nominal, off by the crystal's
// tolerance and the boot clock's discipline, and mostly absent from virtual machines.
constexpr int64_t kShortestBaselineNs = 2'000'000;
// Ends the wait for the baseline under a sampler whose clock stands still.
constexpr int kMostBaselineSamples = 20'000;
// Where the machine was busy at an end of it, so that this one cannot be used, there is another.
constexpr int kBaselineTries = 8;
// A fresh sample this many times as wide as the narrowest kept one is taken again.
constexpr uint64_t kWideBracket = 4;
constexpr int kSampleTries = 4;

uint64_t width(const ClockSample& sample) { return sample.ticks_after - sample.ticks_before; }

}  // namespace

ClockCalibrator::ClockCalibrator(Sampler sampler) : sampler_(std::move(sampler)) {
  kept_.push_back(sampler_());
  kept_count_ = 1;
}

void ClockCalibrator::sample() {
  const ClockSample now = take_sample();
  if (!interval_passed(now)) return;
  keep(now);
  if (map_) refit(now.ticks_after);
}

ClockMap ClockCalibrator::map() {
  ClockSample now = take_sample();
  for (int round = 1; !map_; ++round) {
    const int64_t first_ns = (round == 1 ? kept_.front() : kept_.back()).boot_ns;
    for (int i = 0; now.boot_ns - first_ns < kShortestBaselineNs && i < kMostBaselineSamples; ++i) {
      now = take_sample();
    }
    fresh_ = now;
    if (has_rate() || round == kBaselineTries) break;
    keep(now);
  }
  if (interval_passed(now)) {
    keep(now);
  } else {
    fresh_ = now;
  }
  return refit(now.ticks_after);
}

void ClockCalibrator::trim(uint64_t oldest_ticks) {
  if (map_) map_ = pertoken::trim(*map_, oldest_ticks);
}

ClockSample ClockCalibrator::take_sample() {
  uint64_t narrowest = UINT64_MAX;
  for (const ClockSample& each : kept_) narrowest = std::min(narrowest, width(each));
  ClockSample best = sampler_();
  for (int i = 1; i < kSampleTries && width(best) / kWideBracket > narrowest; ++i) {
    const ClockSample again = sampler_();
    if (width(again) <= width(best)) best = again;
  }
  return best;
}

bool ClockCalibrator::interval_passed(const ClockSample& now) const noexcept {
  const uint64_t level =
      std::min<uint64_t>(kept_count_ / kSamplesPerInterval, std::size(kIntervalsNs) - 1);
  return now.boot_ns - kept_.back().boot_ns >= kIntervalsNs[level];
}

void ClockCalibrator::keep(const ClockSample& now) {
  // What the first map would need is put to use before it is forgotten.
  if (kept_.size() == kSamplesKept) {
    if (!map_) refit(kept_.back().ticks_after);
    kept_.erase(kept_.begin());
  }
  kept_.push_back(now);
  ++kept_count_;
  fresh_.reset();
}

bool ClockCalibrator::has_rate() const {
  return fit(held()).error_bound_ns() != kClockErrorUnknown;
}

std::vector<ClockSample> ClockCalibrator::held() const {
  std::vector<ClockSample> samples = kept_;
  if (fresh_) samples.push_back(*fresh_);
  return samples;
}

const ClockMap& ClockCalibrator::refit(uint64_t settle_ticks) {
  const std::vector<ClockSample> samples = held();
  ClockMap refitted = map_ ? extend(*map_, samples, settled_ticks_) : fit(samples);
  settled_ticks_ = std::max(settled_ticks_, settle_ticks);
  return map_.emplace(std::move(refitted));
}

}  // namespace pertoken
