#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

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
    : budget_(options.budget), costs_(options.costs), next_seed_(options.seed) {
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    const SampledDetail& given = options.details[detail];
    DetailOptions& own = options_[detail];
    own.levels = std::min(given.levels.size(), kMaxSampleLevels);
    own.most = std::min(given.most, kMostProbability);
    for (size_t i = 0; i < own.levels; ++i) {
      own.bits[i] = given.levels[i].detail;
      own.prior_calls[i] = given.levels[i].calls;
      own.prior_timed_ns[i] = given.levels[i].timed_ns;
    }
    if (detail == kObservationsAt && own.levels > 0 && given.in_use) begin_observing();
  }
  for (size_t kind = 0; kind < published_.size(); ++kind) {
    const StepCosts costs = costs_of(strata_[kind]);
    const auto has_cost = [&](size_t detail) {
      return in_use(detail) && costs.details[detail].full_ns > 0;
    };
    size_t costly = 0;
    for (size_t detail = 0; detail < kSampleDetails; ++detail) costly += has_cost(detail);
    for (size_t detail = 0; detail < kSampleDetails; ++detail) {
      // Until steps of the kind were seen the allowance alone decides; and of what may cost
      // anything there is none that it has not paid for.
      PublishedDetail& published = published_[kind].details[detail];
      for (auto& rate : published.rates) store(rate, kMostProbability);
      store(published.floor, detail == kSpansAt ? kFirstFloor : kLeastProbability);
      store(published.share, has_cost(detail) ? 1.0 / static_cast<double>(costly) : 0.0);
    }
    publish(kind, costs, costs);
    store(published_[kind].allowed, kAim);
  }
}

double Sampler::Odds::probability(size_t level, double above) const noexcept {
  const double p = std::max(rates[level] * fill, floor);
  return std::max(std::min(p, most), above);
}

SampleChoice Sampler::Odds::choice(double number) const noexcept {
  double above = 0;  // the probability of the levels above
  for (size_t level = levels; level-- > 0;) {
    const double p = probability(level, above);
    if (number >= p) {
      above = p;
      continue;
    }
    SampleChoice choice{static_cast<int>(level), 1.0 / (p - above), p};
    while (level-- > 0) choice.probability = probability(level, choice.probability);
    return choice;
  }
  return {-1, 0.0, above};
}

double Sampler::pace(const SampleState& state, StepKind kind) const noexcept {
  const double recent_ns = state.recent_ns[static_cast<size_t>(kind)];
  const double mean_ns = load(published_[static_cast<size_t>(kind)].mean_ns);
  return recent_ns > 0 && recent_ns < mean_ns ? recent_ns / mean_ns : 1.0;
}

Sampler::Odds Sampler::odds(const SampleState& state, SampleDetail detail, StepKind kind,
                            bool is_favoured) const noexcept {
  const auto at = static_cast<size_t>(detail);
  const DetailOptions& options = options_[at];
  const PublishedDetail& published = published_[static_cast<size_t>(kind)].details[at];
  double fill = state.allowance_ns[static_cast<size_t>(kind)][at] * load(published.fill_per_ns);
  // What the spans of a step cost is known before any was seen: one of the first has them.
  const bool is_first = at == kSpansAt && !state.had_spans[static_cast<size_t>(kind)];
  fill = is_first ? 1.0 : std::clamp(fill, 0.0, 1.0);
  // It is meant by the second and known by the step.
  const double floor = std::max(load(published.floor) * pace(state, kind), kLeastProbability);
  double most = options.most;
  if (is_favoured) {
    fill *= kFavour;
    most = std::min(most * kFavour, kMostProbability);
  }
  Odds odds{{}, options.levels, fill, floor, most};
  for (size_t level = 0; level < options.levels; ++level) {
    odds.rates[level] = load(published.rates[level]);
  }
  return odds;
}

// Spans begin with nothing, but for the first ones; see odds(). Observations and logits may
// cost anything, and one of them more than a few hundred steps pay: they begin with the price
// of one to pay first.
void Sampler::begin(SampleState& state) noexcept {
  uint64_t seed = next_seed_.fetch_add(1, std::memory_order_relaxed);
  state.random = next_random(seed) | 1;
  for (size_t i = 0; i < published_.size(); ++i) {
    for (size_t each = 0; each < kSampleDetails; ++each) {
      const double price_ns = load(published_[i].details[each].capacity_ns) / kBurst;
      state.allowance_ns[i][each] = each == kSpansAt ? 0.0 : -price_ns;
    }
  }
}

SampleChoice Sampler::decide(SampleState& state, SampleDetail detail, StepKind kind,
                             bool is_favoured, StepPlace place) noexcept {
  const auto at = static_cast<size_t>(detail);
  const bool is_ahead = place != StepPlace::kOwn && (state.ahead.decided >> at & 1) != 0;
  if (is_ahead && place == StepPlace::kNext) return state.next[at];
  if (is_ahead) return {-1, 0.0, state.ahead.choices.probability(detail)};
  if (state.random == 0) [[unlikely]]
    begin(state);
  settle(state);
  return odds(state, detail, kind, is_favoured).choice(uniform(state.random));
}

void Sampler::decide_ahead(SampleState& state, StepKind kind, PackedChoices decided) noexcept {
  if (state.ahead.plain != 0 || state.ahead.has_next) return;
  settle(state);
  state.ahead = {};
  state.ahead.kind = kind;
  ByDetail<Odds> odds_of{};
  ByDetail<double> any{};  // the probability of any level
  for (size_t at = 0; at < kSampleDetails; ++at) {
    const auto detail = static_cast<SampleDetail>(at);
    if (decided.probability(detail) == 0) continue;
    odds_of[at] = odds(state, detail, kind, false);
    const SampleChoice none = odds_of[at].choice(1);
    any[at] = none.probability;
    state.ahead.choices.add(detail, none);
    state.ahead.decided |= static_cast<uint8_t>(1u << at);
  }
  for (; state.ahead.plain < kMostAhead; ++state.ahead.plain) {
    ByDetail<double> numbers{};
    bool gets_any = false;
    for (size_t at = 0; at < kSampleDetails; ++at) {
      if (any[at] == 0) continue;
      numbers[at] = uniform(state.random);
      gets_any |= numbers[at] < any[at];
    }
    if (!gets_any) continue;
    for (size_t at = 0; at < kSampleDetails; ++at) {
      if (any[at] != 0) state.next[at] = odds_of[at].choice(numbers[at]);
    }
    state.ahead.has_next = true;
    return;
  }
}

// What is owed is remembered, up to some times of the last of it: a step whose detail cost far more
// than was known then is paid by those after it.
void Sampler::take_out(double& allowance_ns, double cost_ns, double capacity_ns) noexcept {
  const double least_ns = -std::max(capacity_ns, kBurst * cost_ns);
  allowance_ns = std::max(allowance_ns - cost_ns, std::min(allowance_ns, least_ns));
}

void Sampler::charge_level(SampleState& state, SampleDetail detail, StepKind kind, size_t level,
                           uint64_t timed_ticks) noexcept {
  const PublishedDetail& published =
      published_[static_cast<size_t>(kind)].details[static_cast<size_t>(detail)];
  charge_ns(state, detail, kind, load(published.untimed_ns[level]), timed_ticks);
}

void Sampler::charge_more(SampleState& state, SampleDetail detail, StepKind kind,
                          uint64_t timed_ticks) noexcept {
  settle(state);
  charge_ns(state, detail, kind, 0, timed_ticks);
}

void Sampler::charge_ns(SampleState& state, SampleDetail detail, StepKind kind, double untimed_ns,
                        uint64_t timed_ticks) noexcept {
  const auto at = static_cast<size_t>(detail);
  const PublishedDetail& published = published_[static_cast<size_t>(kind)].details[at];
  const double cost_ns = untimed_ns + load(published.timed_factor) *
                                          static_cast<double>(timed_ticks) * load(ns_per_tick_);
  take_out(state.allowance_ns[static_cast<size_t>(kind)][at], cost_ns, load(published.capacity_ns));
}

void Sampler::settle_ended(SampleState& state) noexcept {
  const SampleState::Ended& ended = state.ended;
  const auto steps = std::exchange(state.ended.steps, 0);
  const UnrecordedCalls& unrecorded = ended.unrecorded;
  if (ended.level >= 0) {
    state.had_spans[static_cast<size_t>(ended.kind)] = true;
    charge_level(state, SampleDetail::kSpans, ended.kind, static_cast<size_t>(ended.level), 0);
  }
  const auto at = static_cast<size_t>(ended.kind);
  const Published& published = published_[at];
  const double dur_ns = static_cast<double>(ended.dur_ticks) * load(ns_per_tick_);
  const double left_ns = dur_ns * load(published.allowed) * budget_ -
                         steps * load(published.plain_ns) - unrecorded.passed_on * costs_.skip_ns;
  // By longer steps, details may be known to cost more than they do in those of late.
  double& recent_ns = state.recent_ns[at];
  const double step_ns = dur_ns / steps;
  const double remembered = step_ns < recent_ns ? kRecentLonger : kRecentSteps;
  for (uint32_t i = 0; i < steps; ++i) recent_ns += (step_ns - recent_ns) / remembered;
  const double paced = pace(state, ended.kind);
  if (unrecorded.moved != 0) {
    const double moved_ns = static_cast<double>(unrecorded.move_ticks) * load(ns_per_tick_);
    take_out(state.allowance_ns[at][kSpansAt], moved_ns,
             load(published.details[kSpansAt].capacity_ns));
  }
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    const PublishedDetail& own = published.details[detail];
    const double share = load(own.share);
    if (share == 0) continue;
    const double capacity_ns = load(own.capacity_ns);
    const double paid_ns = left_ns * share;
    // What longer steps have paid is not for these, but for the price of one.
    const double most_ns =
        std::min(capacity_ns, std::max(paced * capacity_ns / kBurst, kHeldSteps / steps * paid_ns));
    double& allowance_ns = state.allowance_ns[at][detail];
    // Steps that leave nothing make no debt beyond that.
    allowance_ns =
        std::clamp(allowance_ns + paid_ns, std::min(allowance_ns, -capacity_ns), most_ns);
  }
}

Sampler::StepCosts Sampler::costs_of(const Stratum& stratum) const {
  StepCosts costs{};
  const auto mean = [](auto sum, uint64_t count, double otherwise) {
    return count == 0 ? otherwise : static_cast<double>(sum) / static_cast<double>(count);
  };
  const double always = mean(stratum.plain_records, stratum.plain_steps, 0.0);
  double calls = 0;  // of the level below
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    const DetailStratum& seen = stratum.details[detail];
    const DetailOptions& options = options_[detail];
    const double corrected = seen.corrected;
    const uint64_t steps = std::accumulate(seen.detailed.begin(), seen.detailed.end(), uint64_t{0});
    DetailCosts& own = costs.details[detail];
    for (size_t level = 0; level < options.levels; ++level) {
      own.timed_ns[level] = corrected * mean(seen.timed_ns, steps, options.prior_timed_ns[level]);
      if (detail == kSpansAt) {
        const double records =
            mean(stratum.records[level], seen.detailed[level], options.prior_calls[level] + always);
        own.calls[level] = calls = std::max(calls, records - always);
        own.untimed_ns[level] = calls * (corrected * costs_.span_ns + costs_.drain_ns);
      } else if (detail == kObservationsAt) {
        own.untimed_ns[level] =
            mean(stratum.drained, steps, 0.0) * mean(drained_ns_, drained_, 0.0);
      } else {
        own.untimed_ns[level] = mean(stratum.logit_records, steps, 0.0) * costs_.drain_ns;
      }
      own.full_ns = own.at(level);
    }
  }
  costs.records_ns = always * costs_.span_ns + (always + kOwnRecords) * costs_.drain_ns;
  const double root_ns =
      stratum.root_a_step_ns > 0 ? stratum.root_a_step_ns : kUnseenRoot * costs_.step_ns;
  costs.plain_ns = root_ns + costs.records_ns;
  return costs;
}

Sampler::StepCosts Sampler::expected_costs(const Stratum& stratum) const {
  StepCosts costs = costs_of(stratum);
  costs.plain_ns += stratum.passed_on_a_step * costs_.skip_ns;
  DetailCosts& own = costs.details[kSpansAt];
  for (size_t level = 0; level < options_[kSpansAt].levels; ++level) {
    own.untimed_ns[level] += own.calls[level] * stratum.move_a_call_ns;
    own.full_ns = own.at(level);
  }
  return costs;
}

void Sampler::publish(size_t kind, const StepCosts& costs, const StepCosts& expected) {
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    PublishedDetail& published = published_[kind].details[detail];
    const DetailCosts& own = costs.details[detail];
    const double capacity_ns = kBurst * std::max(expected.details[detail].full_ns, 1.0);
    for (size_t level = 0; level < options_[detail].levels; ++level) {
      store(published.untimed_ns[level], own.untimed_ns[level]);
    }
    store(published.timed_factor, strata_[kind].details[detail].corrected);
    store(published.capacity_ns, capacity_ns);
    store(published.fill_per_ns, 2.0 / capacity_ns);
  }
  store(published_[kind].plain_ns, costs.plain_ns + drain_a_step_ns_);
}

void Sampler::control(double now_ns, double drain_ns) {
  if (started_ns_ < 0) {
    started_ns_ = drain_seen_ns_ = now_ns;
    for (Stratum& stratum : strata_) stratum.controlled_ns = now_ns;
    drain_before_ns_ = drain_ns;
  }
  const double of_records_ns = static_cast<double>(all_records_) * costs_.drain_ns;
  drain_ns_ = std::max(drain_ns - drain_before_ns_ - of_records_ns - drained_ns_, drain_ns_);
  const uint64_t steps = all_steps_ - drain_counted_steps_;
  const bool is_first = drain_renewed_ == 0;
  if (steps > 0 && (is_first || now_ns - drain_seen_ns_ >= kPeriodNs)) {
    const double fresh_ns = (drain_ns_ - drain_counted_ns_) / static_cast<double>(steps);
    // The first rounds are many and cold: what they take is spent, and tells little of the others.
    drain_a_step_ns_ = ++drain_renewed_ <= 2 ? fresh_ns : (drain_a_step_ns_ + fresh_ns) / 2;
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
  const auto steps = static_cast<double>(stratum.window.steps);
  const double interval_ns = std::max(now_ns - stratum.controlled_ns, 1.0) / steps;
  // Not what one of the first steps took, in which compilers and caches are warmed up.
  const double before_ns = stratum.mean_ns;
  stratum.mean_ns = stratum.window.step_ns / steps;
  store(published_[kind].mean_ns, std::min(before_ns, stratum.mean_ns));
  const auto renew = [&](double& recent, double fresh) {
    recent = stratum.is_controlled ? (recent + fresh) / 2 : fresh;
  };
  renew(stratum.root_a_step_ns, stratum.window.root_ns / steps);
  renew(stratum.passed_on_a_step, static_cast<double>(stratum.window.passed_on) / steps);
  if (const auto calls = static_cast<double>(stratum.window.calls); calls > 0) {
    renew(stratum.move_a_call_ns, stratum.window.moved_ns / calls);
  }
  const StepCosts costs = expected_costs(stratum);
  publish(kind, costs_of(stratum), costs);

  // Each detail gets an equal part of what there is, and what the others cannot use: those that
  // need least come first.
  double left_ns =
      std::max(stratum.mean_ns * budget_ * kAim - costs.plain_ns - drain_a_step_ns_, 0.0);
  ByDetail<size_t> order{};
  std::iota(order.begin(), order.end(), size_t{0});
  // What no step of the kind could get, as logits outside generate(), needs nothing.
  const auto is_wanted = [&](size_t detail) {
    return in_use(detail) && stratum.details[detail].decided > 0;
  };
  const auto most_ns = [&](size_t detail) {
    return is_wanted(detail) ? options_[detail].most * costs.details[detail].full_ns : 0.0;
  };
  std::ranges::sort(order, {}, most_ns);
  size_t wanted = 0;
  for (size_t detail = 0; detail < kSampleDetails; ++detail) wanted += is_wanted(detail);
  ByDetail<double> spent_ns{};
  for (size_t i = 0; i < kSampleDetails; ++i) {
    const size_t detail = order[i];
    const double given_ns = left_ns / static_cast<double>(kSampleDetails - i);
    spent_ns[detail] = std::min(given_ns, most_ns(detail));
    left_ns -= spent_ns[detail];
    if (!is_wanted(detail)) continue;
    move_rates(kind, detail, costs.details[detail], given_ns);
    const double full_ns = std::max(costs.details[detail].full_ns, 1.0);
    const double affordable =
        kFloorShare / static_cast<double>(wanted) * budget_ * interval_ns / full_ns;
    store(published_[kind].details[detail].floor,
          std::clamp(std::min(interval_ns / kFloorNs, affordable), kLeastProbability,
                     kMostProbability));
  }
  const double all_ns = std::accumulate(spent_ns.begin(), spent_ns.end(), 0.0);
  for (size_t detail = 0; all_ns > 0 && detail < kSampleDetails; ++detail) {
    store(published_[kind].details[detail].share, spent_ns[detail] / all_ns);
  }
  store(published_[kind].allowed, kAllowed);
  stratum.is_controlled = true;
  stratum.is_settled = drain_renewed_ >= 2;
  stratum.controlled_ns = now_ns;
  stratum.window = {};
}

// Each level gets an equal part of what those below leave, the first what they cannot use.
void Sampler::move_rates(size_t kind, size_t detail, const DetailCosts& costs, double rest_ns) {
  PublishedDetail& published = published_[kind].details[detail];
  const size_t levels = options_[detail].levels;
  std::array<double, kMaxSampleLevels> wanted{};
  double left_ns = rest_ns;
  double below_ns = 0;
  double below = 1;
  double spent_ns = 0;
  for (size_t level = 0; level < levels; ++level) {
    const double added_ns = std::max(costs.at(level) - below_ns, 1.0);
    const double given_ns = left_ns / static_cast<double>(levels - level);
    wanted[level] = below = std::min(below, given_ns / added_ns);
    left_ns -= wanted[level] * added_ns;
    spent_ns += wanted[level] * added_ns;
    below_ns = costs.at(level);
  }
  const double scale = spent_ns > 0 ? std::max(rest_ns / spent_ns, 1.0) : 1.0;
  for (size_t level = 0; level < levels; ++level) {
    const double target =
        std::min(std::max(wanted[level] * scale, kLeastProbability), options_[detail].most);
    const double now = load(published.rates[level]);
    if (!strata_[kind].is_settled) {
      store(published.rates[level], target);
    } else if (target > now * kDeadBand || target * kDeadBand < now) {
      store(published.rates[level], std::clamp(target, now / kLargestChange, now * kLargestChange));
    }
  }
}

}  // namespace pertoken
