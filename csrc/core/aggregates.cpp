#include "core/aggregates.h"

#include <algorithm>

namespace pertoken {

void Aggregates::add_span(uint32_t site, uint8_t kind, uint64_t dur_ns, double own_ns) {
  if (site >= sites_.size()) sites_.resize(size_t{site} + 1);
  std::unique_ptr<SiteTotals>* totals = &sites_[site][kind];
  if (*totals == nullptr) {
    const bool is_full = site_histograms_ >= kMaxSiteHistograms;
    if (is_full) totals = &other_site_[kind];
    if (*totals == nullptr) {
      *totals = std::make_unique<SiteTotals>(
          SiteTotals{.site = is_full ? kOtherSite : site, .kind = kind});
    }
    site_histograms_ += is_full ? 0 : 1;
  }
  (*totals)->dur_ns.record_ns(dur_ns);
  (*totals)->own_ns += own_ns;
}

void Aggregates::add_values(uint32_t site, uint8_t kind, double weight,
                            const ExpHistogram& values) {
  const bool is_full = values_.size() >= kMaxValueHistograms && !values_.contains({site, kind});
  const uint32_t shown = is_full ? kOtherSite : site;
  ValueTotals& totals = values_.try_emplace({shown, kind}, ValueTotals{shown, kind}).first->second;
  totals.values.merge(values);
  totals.weigh(weight, static_cast<double>(values.count()), values.sum(), values.sum_sq());
}

RequestTotals& Aggregates::requests(uint32_t label_set) {
  const size_t at = std::min(label_set, kOtherLabels);
  if (at >= requests_.size()) requests_.resize(at + 1);
  return requests_[at];
}

AggregateSnapshot Aggregates::snapshot() const {
  AggregateSnapshot snapshot;
  snapshot.steps = steps_;
  snapshot.requests = requests_;
  snapshot.sites.reserve(site_histograms_ + other_site_.size());
  const auto add = [&](const ByKind& by_kind) {
    for (const auto& totals : by_kind) {
      if (totals != nullptr) snapshot.sites.push_back(*totals);
    }
  };
  for (const ByKind& by_kind : sites_) add(by_kind);
  add(other_site_);
  for (const auto& [key, totals] : values_) snapshot.values.push_back(totals);
  for (const ValueTotals& totals : logits_.totals()) {
    if (totals.observations > 0) snapshot.logits.push_back(totals);
  }
  return snapshot;
}

}  // namespace pertoken
