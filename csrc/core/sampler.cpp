#include "core/sampler.h"

#include <algorithm>
#include <cmath>

namespace pertoken {

namespace {

inline double load(const std::atomic<double>& value) noexcept {
  return value.load(std::memory_order_relaxed);
}

inline void store(std::atomic<double>& value, double to) noexcept {
  value.store(to, std::memory_order_relaxed);
}

// splitmix64: one addition and a mixing of it; good enough to pass the usual batteries of tests.
uint64_t next_random(uint64_t& state) noexcept {
  uint64_t z = (state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// In [0, 1), of 53 bits.
double uniform(uint64_t& state) noexcept {
  return static_cast<double>(next_random(state) >> 11) * 0x1p-53;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options)
    : budget_(options.budget),
      costs_(options.costs),
      levels_(std::clamp<size_t>(options.levels.size(), 1, kMaxSampleLevels)),
      next_seed_(options.seed) {
  for (size_t i = 0; i < std::min(levels_, options.levels.size()); ++i) {
    details_[i] = options.levels[i].detail;
    prior_calls_[i] = options.levels[i].calls;
    values_ns_[i] = options.levels[i].values_ns;
  }
  for (size_t kind = 0; kind < published_.size(); ++kind) {
    // Until steps of the kind were seen the allowance alone decides.
    for (auto& rate : published_[kind].rates) store(rate, kMostProbability);
    store(published_[kind].floor, 1.0 / 64);
    publish(kind, costs_of(strata_[kind]));
  }
}

// Of a level or one above it, given that of those above.
double Sampler::probability(const Published& published, int level, double fill,
                            double above) noexcept {
  const double p = load(published.rates[static_cast<size_t>(level)]) * fill;
  return std::max(std::clamp(p, load(published.floor), kMostProbability), above);
}

SampleChoice Sampler::decide(SampleState& state, StepKind kind, bool is_favoured) noexcept {
  const auto at = static_cast<size_t>(kind);
  const Published& published = published_[at];
  if (state.random == 0) [[unlikely]] {
    uint64_t seed = next_seed_.fetch_add(1, std::memory_order_relaxed);
    state.random = next_random(seed) | 1;
    for (size_t i = 0; i < published_.size(); ++i) {
      state.allowance_ns[i] = load(published_[i].capacity_ns) / 2;
    }
  }
  const double number = uniform(state.random);
  double fill = state.allowance_ns[at] * load(published.fill_per_ns);
  fill = std::clamp(fill, 0.0, 1.0);
  if (is_favoured) fill *= kFavour;
  double above = 0;  // the probability of the levels above
  for (int level = top_level(); level >= 0; --level) {
    const double p = probability(published, level, fill, above);
    if (number >= p) {
      above = p;
      continue;
    }
    SampleChoice choice{level, 1.0 / (p - above), p};
    while (--level >= 0)
      choice.probability = probability(published, level, fill, choice.probability);
    return choice;
  }
  return {-1, 0.0, above};
}

void Sampler::settle(SampleState& state, StepKind kind, int level, uint64_t dur_ticks) noexcept {
  const auto at = static_cast<size_t>(kind);
  const Published& published = published_[at];
  double& allowance_ns = state.allowance_ns[at];
  const double capacity_ns = load(published.capacity_ns);
  const double dur_ns = static_cast<double>(dur_ticks) * load(ns_per_tick_);
  double change_ns = dur_ns * kAllowed * budget_ - load(published.plain_ns);
  if (level >= 0) change_ns -= load(published.detail_ns[static_cast<size_t>(level)]);
  allowance_ns = std::clamp(allowance_ns + change_ns, -capacity_ns, capacity_ns);
}

void Sampler::see(SamplePairs& pairs, const SeenStep& step) {
  const auto kind = static_cast<size_t>(step.kind);
  Stratum& stratum = strata_[kind];
  ++all_steps_;
  all_records_ += step.records + kOwnRecords;
  ++stratum.steps;
  ++stratum.window.steps;
  stratum.step_ns += step.dur_ns;
  stratum.window.step_ns += step.dur_ns;
  if (step.level < 0) {
    ++stratum.plain_steps;
    stratum.plain_records += step.records;
  } else {
    ++stratum.detailed[static_cast<size_t>(step.level)];
    stratum.records[static_cast<size_t>(step.level)] += step.records;
  }
  SamplePairs::Last& last = pairs.last[kind];
  const bool is_pair = last.dur_ns >= 0 && (last.level < 0) != (step.level < 0);
  const double got = step.level < 0 ? 1 - step.probability : step.probability;
  if (!is_pair) {
    last = {step.dur_ns, step.level, got};
    return;
  }
  const int level = std::max(last.level, step.level);
  const double added_ns = (step.level < 0 ? -1 : 1) * (step.dur_ns - last.dur_ns);
  const StepCosts costs = costs_of(stratum);
  const double modelled_ns = costs.detail_ns[static_cast<size_t>(level)] / correction(stratum);
  const double probability = last.probability * got;
  if (modelled_ns > 0 && probability > 0) {
    stratum.paired.add(added_ns / modelled_ns, probability);
  }
  last.dur_ns = -1;
}

// The model of costs holds until the pairs contradict it; then the nearest value that they allow.
double Sampler::correction(const Stratum& stratum) const {
  constexpr double kLeast = 0.25;
  if (!stratum.paired.is_known()) return 1.0;
  const PairedInterval interval = stratum.paired.interval();
  return std::max(std::clamp(1.0, interval.low, interval.high), kLeast);
}

Sampler::StepCosts Sampler::costs_of(const Stratum& stratum) const {
  StepCosts costs{};
  const auto mean = [](uint64_t sum, uint64_t count, double otherwise) {
    return count == 0 ? otherwise : static_cast<double>(sum) / static_cast<double>(count);
  };
  const double always = mean(stratum.plain_records, stratum.plain_steps, 0.0);
  const double corrected = correction(stratum);
  double calls = 0;  // of the level below
  for (size_t level = 0; level < levels_; ++level) {
    const double records =
        mean(stratum.records[level], stratum.detailed[level], prior_calls_[level] + always);
    calls = std::max(calls, records - always);
    const double spans_ns =
        calls * (std::max(costs_.span_ns - costs_.skip_ns, 0.0) + costs_.drain_ns);
    costs.detail_ns[level] = corrected * (spans_ns + values_ns_[level]);
  }
  costs.plain_ns = costs_.step_ns + always * costs_.span_ns + calls * costs_.skip_ns +
                   (always + kOwnRecords) * costs_.drain_ns;
  return costs;
}

void Sampler::publish(size_t kind, const StepCosts& costs) {
  Published& published = published_[kind];
  const double full_ns = std::max(costs.detail_ns[levels_ - 1], 1.0);
  for (size_t level = 0; level < levels_; ++level) {
    store(published.detail_ns[level], costs.detail_ns[level]);
  }
  store(published.plain_ns, costs.plain_ns + drain_a_step_ns_);
  store(published.capacity_ns, kBurst * full_ns);
  store(published.fill_per_ns, 2.0 / (kBurst * full_ns));
}

void Sampler::control(double now_ns, double drain_ns) {
  if (started_ns_ < 0) {
    started_ns_ = drain_seen_ns_ = now_ns;
    for (Stratum& stratum : strata_) stratum.controlled_ns = now_ns;
    drain_before_ns_ = drain_ns;
  }
  const double of_records_ns = static_cast<double>(all_records_) * costs_.drain_ns;
  drain_ns_ = std::max(drain_ns - drain_before_ns_ - of_records_ns, drain_ns_);
  const uint64_t steps = all_steps_ - drain_counted_steps_;
  const bool is_first = drain_counted_steps_ == 0;
  if (steps > 0 && (is_first || now_ns - drain_seen_ns_ >= kPeriodNs)) {
    const double fresh_ns = (drain_ns_ - drain_counted_ns_) / static_cast<double>(steps);
    drain_a_step_ns_ = is_first ? fresh_ns : (drain_a_step_ns_ + fresh_ns) / 2;
    drain_counted_ns_ = drain_ns_;
    drain_counted_steps_ = all_steps_;
    drain_seen_ns_ = now_ns;
  }
  for (size_t kind = 0; kind < strata_.size(); ++kind) {
    const Stratum& stratum = strata_[kind];
    const bool is_due = stratum.is_controlled ? stratum.window.steps >= kPeriodSteps &&
                                                    now_ns - stratum.controlled_ns >= kPeriodNs
                                              : stratum.window.steps >= kFirstSteps;
    // A rare kind is looked at once in the time in which its floor promises a step.
    const bool is_late = stratum.window.steps > 0 && now_ns - stratum.controlled_ns >= kFloorNs;
    if (is_due || is_late) control_stratum(kind, now_ns);
  }
}

void Sampler::control_stratum(size_t kind, double now_ns) {
  Stratum& stratum = strata_[kind];
  Published& published = published_[kind];
  const auto steps = static_cast<double>(stratum.window.steps);
  const double interval_ns = std::max(now_ns - stratum.controlled_ns, 1.0) / steps;
  stratum.mean_ns = stratum.window.step_ns / steps;
  const StepCosts costs = costs_of(stratum);
  publish(kind, costs);

  // Each level gets an equal part of what those below leave, the first what they cannot use.
  const double rest_ns =
      std::max(stratum.mean_ns * budget_ * kAim - costs.plain_ns - drain_a_step_ns_, 0.0);
  std::array<double, kMaxSampleLevels> wanted{};
  double left_ns = rest_ns;
  double below_ns = 0;
  double below = 1;
  double spent_ns = 0;
  for (size_t level = 0; level < levels_; ++level) {
    const double added_ns = std::max(costs.detail_ns[level] - below_ns, 1.0);
    const double given_ns = left_ns / static_cast<double>(levels_ - level);
    wanted[level] = below = std::min(below, given_ns / added_ns);
    left_ns -= wanted[level] * added_ns;
    spent_ns += wanted[level] * added_ns;
    below_ns = costs.detail_ns[level];
  }
  const double scale = spent_ns > 0 ? std::max(rest_ns / spent_ns, 1.0) : 1.0;
  for (size_t level = 0; level < levels_; ++level) {
    const double target = std::clamp(wanted[level] * scale, kLeastProbability, kMostProbability);
    const double now = load(published.rates[level]);
    if (!stratum.is_controlled) {
      store(published.rates[level], target);
    } else if (target > now * kDeadBand || target * kDeadBand < now) {
      store(published.rates[level], std::clamp(target, now / kLargestChange, now * kLargestChange));
    }
  }
  const double full_ns = std::max(costs.detail_ns[levels_ - 1], 1.0);
  const double affordable = kFloorShare * budget_ * interval_ns / full_ns;
  store(published.floor, std::clamp(std::min(interval_ns / kFloorNs, affordable), kLeastProbability,
                                    kMostProbability));
  stratum.is_controlled = true;
  stratum.controlled_ns = now_ns;
  stratum.window = {};
}

SamplerReport Sampler::report() const {
  SamplerReport report;
  report.budget = budget_;
  report.levels.assign(details_.begin(), details_.begin() + static_cast<std::ptrdiff_t>(levels_));
  report.costs = costs_;
  report.drain_ns = drain_ns_;
  for (size_t kind = 0; kind < strata_.size(); ++kind) {
    const Stratum& stratum = strata_[kind];
    const StepCosts costs = costs_of(stratum);
    StratumReport& row = report.strata[kind];
    row.steps = stratum.steps;
    row.step_ns = stratum.step_ns;
    row.detailed = stratum.detailed;
    row.floor = load(published_[kind].floor);
    row.plain_ns = static_cast<double>(stratum.steps) * costs.plain_ns;
    for (size_t level = 0; level < levels_; ++level) {
      row.rates[level] = std::max(load(published_[kind].rates[level]), row.floor);
      row.detail_ns += static_cast<double>(stratum.detailed[level]) * costs.detail_ns[level];
    }
    row.pairs = stratum.paired.pairs();
    row.is_measured = stratum.paired.is_known();
    const double modelled_ns = row.detail_ns / correction(stratum);
    const PairedInterval ratio =
        row.is_measured ? stratum.paired.interval() : PairedInterval{1.0, 1.0, 1.0};
    row.measured_ns = ratio.median * modelled_ns;
    row.low_ns = ratio.low * modelled_ns;
    row.high_ns = ratio.high * modelled_ns;
  }
  return report;
}

}  // namespace pertoken
