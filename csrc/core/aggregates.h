// Everything since the start of a recording, in bounded memory: how often and how long, by step
// kind and by site. Counts never go down. Written by the collector, read under its mutex.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/exp_histogram.h"
#include "core/record.h"

namespace pertoken {

inline constexpr uint8_t kOutsideSteps = kStepKinds;  // the "kind" of a span in no step

struct SiteTotals {
  uint32_t site;
  uint8_t kind;  // StepKind, or kOutsideSteps
  ExpHistogram dur_ns;
};

struct StepTotals {
  uint64_t begun = 0;
  uint64_t failed = 0;
  uint64_t rows = 0;       // of steps whose rows are known
  uint64_t tokens_in = 0;  // of steps whose lengths are known
  ExpHistogram wall_ns;    // of steps that ended
};

struct AggregateSnapshot {
  std::array<StepTotals, kStepKinds> steps;
  std::vector<SiteTotals> sites;
};

class Aggregates {
 public:
  void add_span(uint32_t site, uint8_t kind, uint64_t dur_ns);
  // `query_len` is that of each row, or with `is_total` of all of them together.
  void add_step_begin(StepKind kind, uint32_t rows, uint32_t query_len, bool is_total);
  void add_step_end(StepKind kind, uint64_t wall_ns, bool failed);
  AggregateSnapshot snapshot() const;

 private:
  std::array<StepTotals, kStepKinds> steps_;
  // By site, then by kind: a site is met in few kinds, so most entries stay empty.
  std::vector<std::array<std::unique_ptr<ExpHistogram>, kStepKinds + 1>> sites_;
};

}  // namespace pertoken
