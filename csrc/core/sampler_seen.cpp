// What a sampler learns of the steps that were recorded. The collector's, under the recorder's
// mutex.
#include <algorithm>
#include <cmath>

#include "core/sampler.h"

namespace pertoken {

void Sampler::see(SamplePairs& pairs, const SeenStep& step) {
  Stratum& stratum = strata_[static_cast<size_t>(step.kind)];
  ++all_steps_;
  all_records_ += step.records + kOwnRecords;
  ++stratum.steps;
  ++stratum.window.steps;
  stratum.step_ns += step.dur_ns;
  stratum.window.step_ns += step.dur_ns;
  const double root_ns = step.root_ns > 0 ? step.root_ns : costs_.step_ns;
  stratum.root_ns += root_ns;
  stratum.window.root_ns += root_ns;
  stratum.passed_on += step.unrecorded.passed_on;
  stratum.moved += step.unrecorded.moved;
  stratum.moved_ns += step.moved_ns;
  stratum.window.passed_on += step.unrecorded.passed_on;
  stratum.window.moved_ns += step.moved_ns;
  const int spans = step.details[kSpansAt].level;
  stratum.window.calls += spans < 0 ? 0 : step.records;
  if (spans < 0) {
    ++stratum.plain_steps;
    stratum.plain_records += step.records;
  } else {
    stratum.records[static_cast<size_t>(spans)] += step.records;
  }
  if (std::ranges::all_of(step.details, [](const auto& own) { return own.level < 0; })) {
    ++stratum.undetailed_steps;
    stratum.undetailed_root_ns += root_ns;
    stratum.undetailed_passed_on += step.unrecorded.passed_on;
  }
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    const SeenStep::Detail& seen = step.details[detail];
    stratum.details[detail].decided += seen.probability > 0 ? 1 : 0;
    if (seen.level < 0) continue;
    ++stratum.details[detail].detailed[static_cast<size_t>(seen.level)];
    if (detail != kLogitsAt) stratum.details[detail].timed_ns += seen.timed_ns;
  }
  SeenStep paired = step;
  paired.details[kLogitsAt] = pairs.logits_before;
  pairs.logits_before = step.details[kLogitsAt];
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    if (options_[detail].levels > 0) see_pair(pairs, paired, detail);
  }
}

void Sampler::see_logits(StepKind kind, double timed_ns, uint64_t records) {
  Stratum& stratum = strata_[static_cast<size_t>(kind)];
  stratum.details[kLogitsAt].timed_ns += timed_ns;
  stratum.logit_records += records;
  all_records_ += records;
}

// A pair is of two steps of which one got a detail and the other did not, and that are alike in the
// other details: what those took by themselves is left out. Of logits it is two steps of which one
// came after a step whose logits were read: that took none of its own time, and is added.
//
// Which steps are neighbours must not depend on the coins of the detail itself. Two that are alike
// in the others are used up though both got it, or neither did: were the later one kept for the
// next, plain ones would wait for one with detail at a low rate, and the other way round at a high
// one, and what steps grow by from one to the next would be taken for a part of the cost.
void Sampler::see_pair(SamplePairs& pairs, const SeenStep& step, size_t detail) {
  const auto kind = static_cast<size_t>(step.kind);
  const SeenStep::Detail& own = step.details[detail];
  // Wrappers are moved before the step's time begins.
  const double passed_on_ns = step.unrecorded.passed_on * costs_.skip_ns;
  SamplePairs::Last now{step.dur_ns - step.logits_ns, own.timed_ns, passed_on_ns, {}, 1};
  for (size_t i = 0; i < kSampleDetails; ++i) {
    const SeenStep::Detail& each = step.details[i];
    now.levels[i] = each.level;
    if (i != detail && i != kLogitsAt) now.dur_ns -= each.timed_ns;
    if (options_[i].levels == 0) continue;
    const double exactly = i == detail ? each.probability : 1 / each.weight;
    now.probability *= each.level < 0 ? 1 - each.probability : exactly;
  }
  if (detail != kSpansAt) now.dur_ns -= passed_on_ns;
  now.dur_ns = std::max(now.dur_ns, 0.0);
  SamplePairs::Last& last = pairs.last[kind][detail];
  if (own.probability == 0) {
    last.dur_ns = -1;
    return;
  }
  bool is_alike = last.dur_ns >= 0;
  for (size_t i = 0; i < kSampleDetails; ++i) {
    is_alike = is_alike && (i == detail || last.levels[i] == now.levels[i]);
  }
  if (!is_alike) {
    last = now;
    return;
  }
  if ((last.levels[detail] < 0) == (own.level < 0)) {
    last.dur_ns = -1;
    return;
  }
  const SamplePairs::Last& with = own.level < 0 ? last : now;
  const SamplePairs::Last& without = own.level < 0 ? now : last;
  DetailStratum& stratum = strata_[kind].details[detail];
  double modelled_ns = with.timed_ns;
  if (detail == kSpansAt) {
    const DetailCosts costs = costs_of(strata_[kind]).details[detail];
    modelled_ns = costs.calls[static_cast<size_t>(with.levels[detail])] * costs_.span_ns +
                  with.passed_on_ns - without.passed_on_ns;
  }
  const double probability = last.probability * now.probability;
  if (modelled_ns > 0 && probability > 0) {
    const double besides_ns = detail == kLogitsAt ? with.timed_ns : 0;
    stratum.paired.add((with.dur_ns + besides_ns - without.dur_ns) / modelled_ns, probability);
    stratum.corrected = correction(stratum);
  }
  last.dur_ns = -1;
}

void Sampler::see_drained(const std::array<uint64_t, kStepKinds>& observations, double cpu_ns) {
  for (size_t kind = 0; kind < strata_.size(); ++kind) {
    strata_[kind].drained += observations[kind];
    drained_ += observations[kind];
  }
  drained_ns_ += cpu_ns;
}

// Between what the model of costs says and what the pairs do, by how sure these are: the model may
// well be wrong by as much as itself. Below the model only where the pairs contradict it, so that
// their noise spends no more than the budget.
double Sampler::correction(const DetailStratum& stratum) {
  // What was timed in the steps themselves was spent, whatever the pairs say.
  const double least = stratum.timed_ns > 0 ? 1.0 : 0.25;
  if (!stratum.paired.is_known()) return 1.0;
  const PairedInterval found = stratum.paired.interval();
  const double trust = 1 / (1 + found.error * found.error);
  const double raised = std::max(1.0, 1 + trust * (found.median - 1));
  return std::max(std::clamp(raised, found.low, found.high), least);
}

}  // namespace pertoken
