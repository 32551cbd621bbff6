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
  double root_ns = 0;  // as measured in each step; 0: it is not, and as calibrated
  double span_ns = 100;
  double skip_ns = 60;
  double move_ns = 20;
  double drain_round_ns = 5'000;  // of the drain thread
  double drain_period_ns = 20e6;  // from one round to the next
  double drain_record_ns = 50;
  double drain_observed_ns = 0;  // of an observed step
};

inline constexpr auto kSpans = SampleDetail::kSpans;
inline constexpr auto kObservations = SampleDetail::kObservations;
inline constexpr auto kLogits = SampleDetail::kLogits;
inline constexpr auto kSpansAt = static_cast<size_t>(kSpans);
inline constexpr auto kObservationsAt = static_cast<size_t>(kObservations);
inline constexpr auto kLogitsAt = static_cast<size_t>(kLogits);

// `observe_ns`: what observing a step is thought to take; negative: nothing is observed.
inline SamplerOptions options(double budget, std::vector<SampleLevel> levels, const Cost& cost,
                              uint64_t seed, double observe_ns = -1, double most_observed = 1) {
  SamplerOptions options{.budget = budget,
                         .costs = {cost.step_ns, cost.span_ns, cost.skip_ns, cost.drain_record_ns},
                         .details = {},
                         .seed = seed};
  options.details[kSpansAt].levels = std::move(levels);
  if (observe_ns >= 0) {
    options.details[kObservationsAt] = {
        {{kDetailActivations, 0, observe_ns}}, most_observed, observe_ns > 0};
  }
  return options;
}

// The same with logits, of which a part of the steps can be read; `logits_ns`: what that is thought
// to take.
inline SamplerOptions with_logits(SamplerOptions options, double logits_ns, double most_read = 1) {
  options.details[kLogitsAt] = {{{kDetailLogits, 0, logits_ns}}, most_read};
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
  bool decides_ahead = true;   // else each step has its own coins
  // Whether a step that was decided on ahead to be plain takes the short way of those.
  std::function<bool()> goes_short = [] { return true; };
  std::function<double()> noise_ns = [] { return 0.0; };
  // What observing a step takes, and what it does to it besides.
  std::function<double()> observe_ns = [] { return 0.0; };
  double observe_besides = 0;  // of that
  SampleChoice observed;       // of the last step
  // Likewise of logits: reading them takes no time of the step, unless it is a step that the user
  // declares, and telling what was chosen comes behind it. What it does besides, it does to the
  // next step.
  std::function<double()> logits_ns = [] { return 0.0; };
  double told_part = 0.25;  // of that, when it is known what was chosen
  double logits_besides = 0;
  bool are_declared = false;
  bool have_logits = true;
  SampleChoice read;

  SampleChoice step(StepKind kind, double work_ns, bool is_favoured = false, double idle_ns = 0) {
    observed = read = {};
    double timed_ns = 0;
    double read_ns = 0;
    const StepPlace place =
        decides_ahead ? Sampler::take_place(state_, kind, is_favoured) : StepPlace::kOwn;
    const bool is_short = place == StepPlace::kPlain && goes_short();
    PackedChoices choices = is_short ? state_.ahead.choices : PackedChoices();
    const auto decide = [&](SampleDetail detail) {
      if (is_short) return SampleChoice{-1, 0, choices.probability(detail)};
      const SampleChoice choice = sampler_.decide(state_, detail, kind, is_favoured, place);
      choices.add(detail, choice);
      return choice;
    };
    if (have_logits && sampler_.samples(kLogits)) {
      read = decide(kLogits);
      read_ns = read.level < 0 ? 0 : logits_ns();
    }
    if (sampler_.observes()) {
      observed = decide(kObservations);
      timed_ns = observed.level < 0 ? 0 : observe_ns();
    }
    const SampleChoice choice = decide(kSpans);
    if (decides_ahead && !is_short && !is_favoured && !choices.got_any()) {
      sampler_.decide_ahead(state_, kind, choices);
    }
    const double calls = choice.level < 0 ? 0 : levels_[static_cast<size_t>(choice.level)].calls;
    const double detail_ns = calls * cost_.span_ns * true_ratio;
    const double besides_ns = observe_besides * timed_ns;
    const UnrecordedCalls unrecorded = unrecorded_calls(static_cast<uint32_t>(calls));
    const double passed_on_ns = unrecorded.passed_on * cost_.skip_ns;
    const auto moved_ns = static_cast<double>(unrecorded.move_ticks);
    const double root_ns = cost_.root_ns > 0 ? cost_.root_ns : cost_.step_ns;
    const double plain_ns = root_ns + passed_on_ns + moved_ns;
    // The wrappers' own time is within the step, as far as the root's clock goes.
    const double late_ns = std::exchange(late_ns_, logits_besides * read_ns);
    const double dur_ns =
        std::max(1.0, work_ns + detail_ns + besides_ns + passed_on_ns + late_ns + noise_ns());
    if (is_short) {
      sampler_.end_plain_step(state_, kind, static_cast<uint64_t>(dur_ns), unrecorded);
    } else {
      sampler_.end_step(state_, kind, choice.level, static_cast<uint64_t>(dur_ns), unrecorded);
    }
    sampler_.charge(state_, kObservations, kind, observed.level, static_cast<uint64_t>(timed_ns));
    sampler_.charge(state_, kLogits, kind, read.level,
                    static_cast<uint64_t>((1 - told_part) * read_ns));
    const double inside_ns = are_declared ? (1 - told_part) * read_ns : 0;
    SeenStep seen{kind,
                  dur_ns + timed_ns + inside_ns,
                  static_cast<uint64_t>(calls),
                  unrecorded,
                  moved_ns,
                  cost_.root_ns};
    seen.logits_ns = inside_ns;
    seen.details[kLogitsAt] = {read.level, read.probability, read.weight, 0};
    seen.details[kSpansAt] = {choice.level, choice.probability, choice.weight, 0};
    seen.details[kObservationsAt] = {observed.level, observed.probability, observed.weight,
                                     timed_ns};
    sampler_.see(pairs_, seen);
    if (read.level >= 0) {
      sampler_.charge_more(state_, kLogits, kind, static_cast<uint64_t>(told_part * read_ns));
      sampler_.see_logits(kind, read_ns, kLogitRecords);
      pairs_.logits_before.timed_ns += read_ns;
      read_spent_ns += read_ns * (1 + logits_besides);
    }
    double drained_ns = (calls + 4 + (read.level < 0 ? 0 : kLogitRecords)) * cost_.drain_record_ns;
    if (observed.level >= 0) {
      drained_ns += cost_.drain_observed_ns;
      std::array<uint64_t, kStepKinds> observations{};
      observations[static_cast<size_t>(kind)] = 1;
      sampler_.see_drained(observations, cost_.drain_observed_ns);
    }
    drain_ns_ += drained_ns;
    observe_spent_ns += timed_ns + besides_ns;
    spent_ns += plain_ns + detail_ns + timed_ns + besides_ns + read_ns + late_ns + drained_ns;
    work_done_ns += work_ns;
    now_ns_ += dur_ns + idle_ns;
    while (now_ns_ - drained_at_ns_ >= cost_.drain_period_ns) {
      drained_at_ns_ += cost_.drain_period_ns;
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
  DetailReport logits(StepKind kind) const { return detail(kind, kLogitsAt); }
  Sampler& sampler() { return sampler_; }
  double now_ns() const { return now_ns_; }

  double spent_ns = 0;
  double observe_spent_ns = 0;
  double read_spent_ns = 0;
  double work_done_ns = 0;

 private:
  static constexpr uint64_t kLogitRecords = 3;  // a token, and two times

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
      calls.move_ticks = static_cast<uint64_t>(calls.moved * cost_.move_ns);
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
  double late_ns_ = 0;  // what the last step's logits do to the next one
  double now_ns_ = 0;
  double drained_at_ns_ = 0;
  double drain_ns_ = 0;
};

// How many of so many steps got a detail: `choice` says which.
inline int steps_with(World& world, const SampleChoice World::* choice, int steps) {
  int seen = 0;
  for (int i = 0; i < steps; ++i) {
    world.step(StepKind::kDecode, kMillisecond);
    seen += (world.*choice).level >= 0;
  }
  return seen;
}

// Of estimates, relative to the truth, over seeds.
template <size_t kEstimates>
class EstimateErrors {
 public:
  void add(const std::array<double, kEstimates>& estimates, double truth) {
    ++count_;
    for (size_t i = 0; i < kEstimates; ++i) {
      const double error = estimates[i] / truth - 1;
      sum_[i] += error;
      squares_[i] += error * error;
    }
  }
  double mean(size_t i) const { return sum_[i] / count_; }
  // The standard error of the mean.
  double deviation(size_t i) const {
    return std::sqrt((squares_[i] / count_ - mean(i) * mean(i)) / (count_ - 1));
  }

 private:
  double count_ = 0;
  std::array<double, kEstimates> sum_{};
  std::array<double, kEstimates> squares_{};
};

inline std::vector<SampleLevel> layers(double calls) { return {{kDetailLayers, calls, 0}}; }

inline std::function<double()> lognormal(double median_ns, double sigma, uint64_t seed) {
  return [=, random = std::mt19937_64(seed),
          normal = std::normal_distribution<double>(0, sigma)]() mutable {
    return median_ns * std::exp(normal(random));
  };
}

}  // namespace pertoken
