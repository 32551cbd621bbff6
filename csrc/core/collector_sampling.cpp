// What the sampler is told of the steps that were recorded.
#include <algorithm>

#include "core/collector.h"

namespace pertoken {

// What is longer than any way through it, beside a step's length, was interrupted: by the system,
// or because the memory was first used.
double Collector::root_time_ns(const StepCost& cost, uint64_t dur_ticks) const noexcept {
  constexpr double kLongestNs = 20'000;
  constexpr double kLongestShare = 1.0 / 64;
  const double step_ns = static_cast<double>(dur_ticks) * ns_per_tick_;
  return std::min(static_cast<double>(cost.root) * ns_per_tick_,
                  std::max(kLongestNs, step_ns * kLongestShare));
}

void Collector::see_step(const Record& end, const StepRow& row, double root_ns,
                         const OpenStep& ended, ThreadBuffer::Progress& progress) {
  // The root's own span is among the records, and part of what a step costs.
  SeenStep seen{.kind = ended.kind,
                .dur_ns = static_cast<double>(to_ns(row.end_ticks - row.start_ticks, ns_per_tick_)),
                .records = std::max<uint64_t>(ended.records, 1) - 1,
                .unrecorded = ended.unrecorded,
                .moved_ns = static_cast<double>(to_ns(ended.unrecorded.move_ticks, ns_per_tick_)),
                .root_ns = root_ns,
                .logits_ns = ended.logits_inside_ns};
  const PackedChoices choices(uint64_t{end.parent_seq} << 32 | end.seq);
  const auto with_one_level = [&](SampleDetail detail, double timed_ns) {
    const double probability = choices.probability(detail);
    seen.details[static_cast<size_t>(detail)] = {.level = choices.got(detail) ? 0 : -1,
                                                 .probability = probability,
                                                 .weight = 1 / probability,
                                                 .timed_ns = timed_ns};
  };
  with_one_level(SampleDetail::kObservations,
                 static_cast<double>(to_ns(row.observe_ticks, ns_per_tick_)));
  with_one_level(SampleDetail::kLogits, ended.logits_ns);
  seen.details[static_cast<size_t>(SampleDetail::kSpans)] = {
      .level = ended.level,
      .probability = choices.probability(SampleDetail::kSpans),
      .weight = ended.exact_weight};
  sampler_->see(progress.pairs, seen);
  progress.step_before = ended.step;
}

// In the time of a step that the user declares, or outside of any; before the end of the step whose
// logits they are, or after it.
void Collector::see_logits(const Record& record, int64_t step, ThreadBuffer::Progress& progress) {
  if (sampler_ == nullptr) return;
  double took_ns = 0;
  if (record.type() == RecordType::kLogitsTime) {
    took_ns = static_cast<double>(to_ns(record.start_ticks, ns_per_tick_));
    if (step == progress.step_before) {
      progress.pairs.logits_before.timed_ns += took_ns;
    } else if (OpenStep* const own = progress.steps.find(step)) {
      own->logits_ns += took_ns;
    }
    OpenStep* const inside = record.seq == kNone32 ? nullptr : progress.steps.find_low(record.seq);
    if (inside != nullptr) inside->logits_inside_ns += took_ns;
  }
  const StepRow* row = store_.step(step);
  if (row != nullptr && row->begun) sampler_->see_logits(step_kind(row->detail), took_ns, 1);
}

}  // namespace pertoken
