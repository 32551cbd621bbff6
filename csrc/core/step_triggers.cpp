#include "core/step_triggers.h"

#include <algorithm>
#include <utility>

namespace pertoken {

void StepTriggers::arm(const Times& fixed_ns, std::vector<LearnedTime> learned,
                       WatchedValues values) {
  is_armed_ = true;
  ++times_armed_;
  fixed_ns_ = fixed_ns;
  learned_ = std::move(learned);
  learned_ns_ = {};
  values_ = values;
  nonfinite_.forget();
}

void StepTriggers::learn(const Aggregates& totals, double ns_per_tick) {
  if (!is_armed_) {
    over_ticks_ = no_times();
    return;
  }
  ns_per_tick_ = ns_per_tick;
  learned_ns_ = {};
  for (const LearnedTime& each : learned_) {
    const ExpHistogram& wall_ns = totals.steps(each.kind).wall_ns;
    if (wall_ns.count() < each.min_steps) continue;
    const double ns = wall_ns.quantile(each.quantile) * each.factor;
    if (!(ns >= 1 && ns < 1e18)) continue;
    uint64_t& shortest = learned_ns_[static_cast<size_t>(each.kind)];
    const auto time_ns = static_cast<uint64_t>(ns);
    shortest = shortest == 0 ? time_ns : std::min(shortest, time_ns);
  }
  for (size_t kind = 0; kind < over_ticks_.size(); ++kind) {
    uint64_t over_ns = UINT64_MAX;
    for (const uint64_t time_ns : {fixed_ns_[kind], learned_ns_[kind]}) {
      if (time_ns != 0) over_ns = std::min(over_ns, time_ns);
    }
    const double ticks = static_cast<double>(over_ns) / ns_per_tick;
    over_ticks_[kind] = ticks < 1e18 ? static_cast<uint64_t>(ticks) : UINT64_MAX;
  }
}

void StepTriggers::step_is_slow(int64_t step, StepKind kind, uint64_t wall_ticks) {
  if (!is_armed_) return;
  const auto at = static_cast<size_t>(kind);
  const bool is_fixed =
      fixed_ns_[at] != 0 && (learned_ns_[at] == 0 || fixed_ns_[at] <= learned_ns_[at]);
  fire({.cause = is_fixed ? TriggerCause::kStepTime : TriggerCause::kSlowStep,
        .step = step,
        .kind = kind,
        .wall_ns = to_ns(wall_ticks, ns_per_tick_),
        .over_ns = is_fixed ? fixed_ns_[at] : learned_ns_[at]});
}

void StepTriggers::watch_values(int64_t step, const Observation& observation) {
  const ExpHistogram& values = observation.values;
  const uint64_t infinities = values.pos_inf_count() + values.neg_inf_count();
  const bool is_bad =
      (values_.nans && values.nan_count() != 0) || (values_.infinities && infinities != 0);
  if (!nonfinite_.begins(observation.site, step, is_bad)) return;
  fire({.cause = TriggerCause::kNonFinite,
        .step = step,
        .kind = step_kind(observation.kind),
        .site = observation.site,
        .row = observation.row,
        .nans = values.nan_count(),
        .infinities = infinities});
}

void StepTriggers::see_signal(int number) {
  if (is_armed_) fire({.cause = TriggerCause::kSignal, .signal = number});
}

void StepTriggers::fire(const FiredTrigger& trigger) noexcept {
  if (fired_) {
    ++fired_->others;
  } else {
    fired_ = {.first = trigger};
  }
}

std::optional<FiredTriggers> StepTriggers::take() noexcept {
  return std::exchange(fired_, std::nullopt);
}

}  // namespace pertoken
