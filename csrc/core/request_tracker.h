// Follows the steps, generations and requests of a recording while they are open, and counts in the
// aggregates what they were when they end: what the store keeps whole, this keeps only as long as
// it is needed, so that neither eviction nor a long run touches a count. Used by the collector,
// under the recorder's mutex; only events() is for other threads.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/aggregates.h"
#include "core/generation_times.h"
#include "core/request_events.h"

namespace pertoken {

// A step as its first record tells it.
struct StepBegin {
  int64_t step;
  StepKind kind;
  uint32_t rows;
  uint32_t query_len;  // of each row, or with kStepHasRows of all
  uint32_t detail;     // flags, see record.h
  uint32_t generation;
  uint64_t start_ticks;
};

class RequestTracker {
 public:
  explicit RequestTracker(Aggregates& totals) : totals_(totals), steps_(kOpenSteps) {}

  RequestEvents& events() noexcept { return events_; }
  void set_rate(double ns_per_tick) noexcept { ns_per_tick_ = ns_per_tick; }

  // Round a walk through all rings. What had ended when it began is counted when it is over: by
  // then every record that was pushed before has been seen, on whichever thread.
  void begin_round();
  void end_round();

  // In the order of the records of one thread.
  void see_row(int64_t step, uint32_t context_tokens, uint32_t query_tokens);
  void begin_step(const StepBegin& begin);
  void end_step(int64_t step, uint64_t end_ticks, uint32_t detail);
  void commit(int64_t step, uint32_t tokens, uint32_t before, bool is_total);
  // Of one row of a step whose rows an engine tells, each a sequence of its own.
  void commit_row(int64_t step, uint32_t row, uint32_t generation, uint32_t tokens);

  // What the bounds below have cost.
  uint64_t requests_uncounted() const noexcept { return requests_uncounted_; }
  uint64_t tokens_uncounted() const noexcept { return tokens_uncounted_; }

 private:
  static constexpr size_t kOpenSteps = 1024;                // told apart at a time
  static constexpr size_t kOpenRequests = size_t{1} << 16;  // and as many generations
  static constexpr size_t kWaiting = size_t{1} << 18;       // commits, 32 bytes each
  static constexpr size_t kLongSteps = 4096;
  static constexpr size_t kEarlyCommits = size_t{1} << 16;

  struct Step {
    int64_t number = -1;
    uint64_t start_ticks = 0;
    uint64_t end_ticks = 0;  // 0 while it runs
    uint32_t rows = kNone32;
    uint32_t query_len = kNone32;
    uint32_t generation = kNone32;
    uint32_t detail = 0;
    bool has_begun = false;
    // What the padding mask, which comes before the beginning, has told of so many rows.
    bool is_mask_known = true;
    uint32_t masked_rows = 0;
    int64_t masked_tokens = 0;
  };

  // A row's commit that was seen before the end of its step, which may be in another thread's ring.
  struct EarlyCommit {
    int64_t step;
    uint32_t row;
    uint32_t generation;
    uint32_t tokens;
  };

  struct Request {
    uint32_t label_set = kOtherLabels;
    uint64_t start_ticks = 0;
    uint64_t first_commit_ticks = 0;  // 0 none
    uint64_t last_commit_ticks = 0;
    bool has_ended_generation = false;
    int64_t output_len = 0;  // of all generations, one after the other; -1 unknown
    std::vector<uint32_t> generations;
  };

  Step& slot(int64_t step) { return steps_[static_cast<size_t>(step) % kOpenSteps]; }
  Step& open_step(int64_t step);
  Step* find_step(int64_t step);
  GenerationTimes* find_generation(uint32_t generation);
  static void count_lengths(const Step& step, StepTotals& totals);
  void commit_unowned_rows(const Step& step, uint32_t tokens);
  static int64_t logits_step(const Step& step) noexcept;
  void take_events();
  void commit_early_rows();
  void apply(const RequestBegin& begin);
  void apply(const GenerationBegin& begin);
  void apply(const GenerationEnd& end);
  void apply(const RequestEnd& end);

  Aggregates& totals_;
  RequestEvents events_;
  double ns_per_tick_ = 1.0;
  std::vector<Step> steps_;             // a step stands at its number modulo the length
  std::map<int64_t, Step> long_steps_;  // those that still ran when another needed their place
  std::vector<EarlyCommit> early_commits_;
  std::map<uint32_t, Request> requests_;
  std::map<uint32_t, GenerationTimes> generations_;
  std::vector<RequestEvent> due_;    // ends that this round will have seen everything of
  std::vector<RequestEvent> later_;  // those that the next one will
  size_t waiting_ = 0;               // commits, in all generations
  uint64_t requests_uncounted_ = 0;
  uint64_t tokens_uncounted_ = 0;
};

}  // namespace pertoken
