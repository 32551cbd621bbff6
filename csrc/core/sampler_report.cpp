// What the sampler states: of each kind of step how many had which detail, what that has cost, and
// what pairs of steps have shown of it.
#include <algorithm>

#include "core/sampler.h"

namespace pertoken {

SamplerReport Sampler::report() const {
  SamplerReport report;
  report.budget = budget_;
  report.costs = costs_;
  report.drain_ns = drain_ns_;
  for (size_t detail = 0; detail < kSampleDetails; ++detail) {
    const DetailOptions& options = options_[detail];
    report.levels[detail].assign(
        options.bits.begin(), options.bits.begin() + static_cast<std::ptrdiff_t>(options.levels));
  }
  for (size_t kind = 0; kind < strata_.size(); ++kind) {
    const Stratum& stratum = strata_[kind];
    const StepCosts costs = costs_of(stratum);
    StratumReport& row = report.strata[kind];
    row.steps = stratum.steps;
    row.step_ns = stratum.step_ns;
    const auto plain_ns = [&](double root_ns, uint64_t steps, uint64_t passed_on) {
      return root_ns + static_cast<double>(steps) * costs.records_ns +
             static_cast<double>(passed_on) * costs_.skip_ns;
    };
    row.plain_ns = plain_ns(stratum.root_ns, stratum.steps, stratum.passed_on);
    row.undetailed_steps = stratum.undetailed_steps;
    row.undetailed_ns = plain_ns(stratum.undetailed_root_ns, stratum.undetailed_steps,
                                 stratum.undetailed_passed_on);
    row.passed_on = stratum.passed_on;
    row.moved = stratum.moved;
    row.moved_ns = stratum.moved_ns;
    for (size_t detail = 0; detail < kSampleDetails; ++detail) {
      row.details[detail] = report_detail(kind, detail, costs.details[detail]);
    }
  }
  return report;
}

DetailReport Sampler::report_detail(size_t kind, size_t detail, const DetailCosts& costs) const {
  const DetailStratum& stratum = strata_[kind].details[detail];
  const PublishedDetail& published = published_[kind].details[detail];
  const DetailOptions& options = options_[detail];
  DetailReport row;
  row.decided = stratum.decided;
  row.detailed = stratum.detailed;
  row.floor = std::min(published.floor.load(std::memory_order_relaxed), options.most);
  double untimed_ns = 0;
  double calls_ns = 0;  // of untimed_ns, what pairs can show, by the model: not the drain thread's
  for (size_t level = 0; level < options.levels; ++level) {
    row.rates[level] = std::min(
        std::max(published.rates[level].load(std::memory_order_relaxed), row.floor), options.most);
    const auto steps = static_cast<double>(stratum.detailed[level]);
    untimed_ns += steps * costs.untimed_ns[level];
    calls_ns += steps * costs.calls[level] * costs_.span_ns;
  }
  const double corrected = stratum.corrected;
  const double moved_ns = detail == kSpansAt ? strata_[kind].moved_ns : 0.0;
  row.detail_ns = untimed_ns + corrected * stratum.timed_ns + moved_ns;
  row.pairs = stratum.paired.pairs();
  row.is_measured = stratum.paired.is_known();
  PairedInterval ratio{1.0, 1.0, 1.0, 0.0};
  if (row.is_measured) ratio = stratum.paired.interval();
  const auto measured_ns = [&](double factor) {
    if (stratum.timed_ns > 0) return untimed_ns + std::max(factor, 1.0) * stratum.timed_ns;
    return untimed_ns + (factor - corrected) * calls_ns + moved_ns;
  };
  row.measured_ns = measured_ns(ratio.median);
  row.low_ns = measured_ns(ratio.low);
  row.high_ns = measured_ns(ratio.high);
  // What is spent may count more than pairs have shown; see correction().
  if (row.is_measured) row.detail_ns = std::clamp(row.detail_ns, row.low_ns, row.high_ns);
  return row;
}

}  // namespace pertoken
