// Everything since the start of a recording, in bounded memory: how often and how long, by step
// kind, by site and by the label set of requests. Counts never go down. Written by the collector,
// read under its mutex.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/committed_logits.h"
#include "core/exp_histogram.h"
#include "core/record.h"
#include "core/value_totals.h"

namespace pertoken {

// Once so many pairs of site and kind have a histogram, the spans of further ones are counted under
// kOtherSite, by kind. A histogram of durations takes 4 KB at most, so that all take 130 MB.
inline constexpr size_t kMaxSiteHistograms = size_t{1} << 15;
// The same of the values that sites put out, whose histograms take some 10 KB.
inline constexpr size_t kMaxValueHistograms = size_t{1} << 13;
inline constexpr uint32_t kOtherSite = kNone32;

// Label sets are numbered from 0 by whoever interns them; what comes after so many is the last one.
inline constexpr uint32_t kMaxLabelSets = 128;
inline constexpr uint32_t kOtherLabels = kMaxLabelSets;

inline uint64_t to_ns(uint64_t dur_ticks, double ns_per_tick) noexcept {
  return static_cast<uint64_t>(static_cast<double>(dur_ticks) * ns_per_tick);
}

struct SiteTotals {
  uint32_t site;
  uint8_t kind;       // StepKind, or kOutsideSteps
  double own_ns = 0;  // weighted: of all steps, where only some were recorded inside
  ExpHistogram dur_ns = ExpHistogram();
};

struct StepTotals {
  uint64_t begun = 0;
  uint64_t failed = 0;
  uint64_t detailed = 0;          // recorded inside, as fully as was asked
  uint64_t rows = 0;              // of steps whose rows are known
  uint64_t tokens_in = 0;         // of steps whose lengths are known
  uint64_t tokens_committed = 0;  // once they are certain
  ExpHistogram wall_ns;           // of steps that ended without an exception
  ExpHistogram itl_ns;            // of the tokens that they committed
};

// Of the requests with one label set. Latencies of whole requests are of those that ended without
// an exception.
struct RequestTotals {
  uint64_t started = 0;
  uint64_t finished = 0;  // without an exception
  uint64_t failed = 0;
  uint64_t tokens_in = 0;   // of generations whose prompt is known
  uint64_t tokens_out = 0;  // committed, once they are certain
  ExpHistogram duration_ns;
  ExpHistogram ttft_ns;
  ExpHistogram tpot_ns;
  ExpHistogram itl_ns;
  std::array<ExpHistogram, kStepKinds> step_ns;  // of their steps, as StepTotals::wall_ns
};

struct AggregateSnapshot {
  std::array<StepTotals, kStepKinds> steps;
  std::vector<SiteTotals> sites;
  std::vector<ValueTotals> values;
  std::vector<ValueTotals> logits;      // by number of the signal
  std::vector<RequestTotals> requests;  // by number of the label set
  // What the bounds of the request tracker have left out.
  uint64_t requests_uncounted = 0;
  uint64_t tokens_uncounted = 0;
};

class Aggregates {
 public:
  void add_span(uint32_t site, uint8_t kind, uint64_t dur_ns, double own_ns);
  // Throws std::overflow_error where the values cannot be counted in 64 bits any longer.
  void add_values(uint32_t site, uint8_t kind, double weight, const ExpHistogram& values);
  StepTotals& steps(StepKind kind) { return steps_[static_cast<size_t>(kind)]; }
  const StepTotals& steps(StepKind kind) const { return steps_[static_cast<size_t>(kind)]; }
  RequestTotals& requests(uint32_t label_set);
  CommittedLogits& logits() noexcept { return logits_; }
  AggregateSnapshot snapshot() const;

 private:
  // By kind: a site is met in few kinds, so most entries stay empty.
  using ByKind = std::array<std::unique_ptr<SiteTotals>, kStepKinds + 1>;

  std::array<StepTotals, kStepKinds> steps_;
  std::vector<ByKind> sites_;  // by site; as long as the table of strings, which is bounded
  ByKind other_site_;
  size_t site_histograms_ = 0;
  // By site and kind, and the same of those beyond the bound under kOtherSite.
  std::map<std::pair<uint32_t, uint8_t>, ValueTotals> values_;
  CommittedLogits logits_;
  std::vector<RequestTotals> requests_;
};

}  // namespace pertoken
