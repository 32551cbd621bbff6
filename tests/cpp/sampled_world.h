// A thread that runs invented steps under a sampler, and the drain thread beside it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "core/sampler.h"
#include "core/step_detail.h"

namespace pertoken {

inline constexpr double kMillisecond = 1e6;  // ns
inline constexpr double kSecond = 1e9;

struct Cost {
  double step_ns = 500;
  double span_ns = 100;
  double skip_ns = 60;
  double move_ns = 20;
  double drain_round_ns = 5'000;  // of the drain thread, each 20 ms
  double drain_record_ns = 50;
  double drain_observed_ns = 0;  // of an observed step
};

inline constexpr auto kSpans = SampleDetail::kSpans;
inline constexpr auto kObservations = SampleDetail::kObservations;
inline constexpr auto kSpansAt = static_cast<size_t>(kSpans);
inline constexpr auto kObservationsAt = static_cast<size_t>(kObservations);

// `observe_ns`: what observing a step is thought to take; negative: nothing is observed.
inline SamplerOptions options(double budget, std::vector<SampleLevel> levels, const Cost& cost,
                              uint64_t seed, double observe_ns = -1, double most_observed = 1) {
  SamplerOptions options{
      .budget = budget,
      .costs = {cost.step_ns, cost.span_ns, cost.skip_ns, cost.move_ns, cost.drain_record_ns},
      .details = {},
      .seed = seed};
  options.details[kSpansAt].levels = std::move(levels);
  if (observe_ns >= 0) {
    options.details[kObservationsAt] = {
        {{kDetailActivations, 0, observe_ns}}, most_observed, observe_ns > 0};
  }
  return options;
}

class World {
 public:
  World(double budget, std::vector<SampleLevel> levels, Cost cost = {}, uint64_t seed = 1)
      : World(options(budget, std::move(levels), cost, seed), cost) {}
  World(const SamplerOptions& given, Cost cost)
      : levels_(given.details[kSpansAt].levels), cost_(cost), sampler_(given) {
    sampler_.control(now_ns_, 0);
  }

  // What detail really adds, times the model's idea of it.
  double true_ratio = 1;
  bool wrappers_stay = false;  // where they are, in steps without spans
  std::function<double()> noise_ns = [] { return 0.0; };
  // What observing a step takes, and what it does to it besides.
  std::function<double()> observe_ns = [] { return 0.0; };
  double observe_besides = 0;  // of that
  SampleChoice observed;       // of the last step

  SampleChoice step(StepKind kind, double work_ns, bool is_favoured = false, double idle_ns = 0) {
    observed = {};
    double timed_ns = 0;
    if (sampler_.observes()) {
      observed = sampler_.decide(state_, kObservations, kind, is_favoured);
      timed_ns = observed.level < 0 ? 0 : observe_ns();
    }
    const SampleChoice choice = sampler_.decide(state_, kSpans, kind, is_favoured);
    const double calls = choice.level < 0 ? 0 : levels_[static_cast<size_t>(choice.level)].calls;
    const double detail_ns = calls * cost_.span_ns * true_ratio;
    const double besides_ns = observe_besides * timed_ns;
    const UnrecordedCalls unrecorded = unrecorded_calls(static_cast<uint32_t>(calls));
    const double passed_on_ns = unrecorded.passed_on * cost_.skip_ns;
    const double plain_ns = cost_.step_ns + passed_on_ns + unrecorded.moved * cost_.move_ns;
    // The wrappers' own time is within the step, as far as the root's clock goes.
    const double dur_ns =
        std::max(1.0, work_ns + detail_ns + besides_ns + passed_on_ns + noise_ns());
    sampler_.charge(state_, kSpans, kind, choice.level, 0);
    sampler_.pay_in(state_, kind, static_cast<uint64_t>(dur_ns), unrecorded);
    sampler_.charge(state_, kObservations, kind, observed.level, static_cast<uint64_t>(timed_ns));
    SeenStep seen{kind, dur_ns + timed_ns, static_cast<uint64_t>(calls), unrecorded};
    seen.details[kSpansAt] = {choice.level, choice.probability, choice.weight, 0};
    seen.details[kObservationsAt] = {observed.level, observed.probability, observed.weight,
                                     timed_ns};
    sampler_.see(pairs_, seen);
    double drained_ns = (calls + 4) * cost_.drain_record_ns;
    if (observed.level >= 0) {
      drained_ns += cost_.drain_observed_ns;
      std::array<uint64_t, kStepKinds> observations{};
      observations[static_cast<size_t>(kind)] = 1;
      sampler_.see_drained(observations, cost_.drain_observed_ns);
    }
    drain_ns_ += drained_ns;
    observe_spent_ns += timed_ns + besides_ns;
    spent_ns += plain_ns + detail_ns + timed_ns + besides_ns + drained_ns;
    work_done_ns += work_ns;
    now_ns_ += dur_ns + idle_ns;
    while (now_ns_ - drained_at_ns_ >= 20 * kMillisecond) {
      drained_at_ns_ += 20 * kMillisecond;
      drain_ns_ += cost_.drain_round_ns;
      spent_ns += cost_.drain_round_ns;
      sampler_.control(now_ns_, drain_ns_);
    }
    return choice;
  }

  // Cost over time of these steps.
  double share(int steps, StepKind kind, const std::function<double()>& work_ns) {
    spent_ns = work_done_ns = 0;
    for (int i = 0; i < steps; ++i) step(kind, work_ns());
    return spent_ns / work_done_ns;
  }

  double rate(StepKind kind, size_t level = 0) const { return spans(kind).rates[level]; }
  DetailReport spans(StepKind kind) const { return detail(kind, kSpansAt); }
  DetailReport observations(StepKind kind) const { return detail(kind, kObservationsAt); }
  Sampler& sampler() { return sampler_; }
  double now_ns() const { return now_ns_; }

  double spent_ns = 0;
  double observe_spent_ns = 0;
  double work_done_ns = 0;

 private:
  DetailReport detail(StepKind kind, size_t detail) const {
    return sampler_.report().strata[static_cast<size_t>(kind)].details[detail];
  }

  // As wrappers do that step aside, once all are known to be called: those that have no spans are
  // out of their slots.
  UnrecordedCalls unrecorded_calls(uint32_t recorded) {
    const uint32_t all = levels_.empty() ? 0 : static_cast<uint32_t>(levels_.back().calls);
    UnrecordedCalls calls;
    if (wrappers_stay) {
      calls.passed_on = all - recorded;
    } else {
      calls.moved = std::max(in_slots_, recorded) - std::min(in_slots_, recorded);
      in_slots_ = recorded;
    }
    return calls;
  }

  std::vector<SampleLevel> levels_;
  Cost cost_;
  uint32_t in_slots_ = 0;
  Sampler sampler_;
  SampleState state_;
  SamplePairs pairs_;
  double now_ns_ = 0;
  double drained_at_ns_ = 0;
  double drain_ns_ = 0;
};

inline std::vector<SampleLevel> layers(double calls) { return {{kDetailLayers, calls, 0}}; }

inline std::function<double()> lognormal(double median_ns, double sigma, uint64_t seed) {
  return [=, random = std::mt19937_64(seed),
          normal = std::normal_distribution<double>(0, sigma)]() mutable {
    return median_ns * std::exp(normal(random));
  };
}

}  // namespace pertoken
