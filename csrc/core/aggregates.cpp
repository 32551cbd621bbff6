#include "core/aggregates.h"

namespace pertoken {

void Aggregates::add_span(uint32_t site, uint8_t kind, uint64_t dur_ns) {
  if (site >= sites_.size()) sites_.resize(site + 1);
  auto& histogram = sites_[site][kind];
  if (histogram == nullptr) histogram = std::make_unique<ExpHistogram>();
  histogram->record_ns(dur_ns);
}

void Aggregates::add_step_begin(StepKind kind, uint32_t rows, uint32_t query_len, bool is_total) {
  StepTotals& totals = steps_[static_cast<size_t>(kind)];
  ++totals.begun;
  if (rows == kNone32) return;
  totals.rows += rows;
  if (query_len != kNone32) totals.tokens_in += uint64_t{is_total ? 1 : rows} * query_len;
}

void Aggregates::add_step_end(StepKind kind, uint64_t wall_ns, bool failed) {
  StepTotals& totals = steps_[static_cast<size_t>(kind)];
  if (failed) ++totals.failed;
  totals.wall_ns.record_ns(wall_ns);
}

AggregateSnapshot Aggregates::snapshot() const {
  AggregateSnapshot snapshot;
  snapshot.steps = steps_;
  for (uint32_t site = 0; site < sites_.size(); ++site) {
    for (uint8_t kind = 0; kind <= kStepKinds; ++kind) {
      const auto& histogram = sites_[site][kind];
      if (histogram != nullptr) snapshot.sites.push_back({site, kind, *histogram});
    }
  }
  return snapshot;
}

}  // namespace pertoken
