// The commits of one generation: which rows got tokens, and how long after their last ones. What a
// commit means is often known later than its time: rows may have ended unseen, and the last step
// of a call that raises has committed nothing. Such commits wait. A sequence whose steps change
// threads within one round of the collector may be met out of order: then a commit that is older
// than one already met has no time to the one before it. Used by the collector only.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "core/aggregates.h"
#include "core/request_events.h"

namespace pertoken {

struct StepCommit {
  int64_t step;        // kNoStep where several forwards ran in it, of which each may have chosen
  uint64_t end_ticks;  // of the step
  uint32_t rows;       // kNone32 unknown
  uint32_t tokens;     // of each row, or of all when it was declared
  uint32_t before;     // tokens of each row, by earlier steps
  StepKind kind;
  bool is_declared;
};

class GenerationTimes {
 public:
  // More rows than this, which a user may declare, are unknown rows.
  static constexpr uint32_t kMaxRows = 1u << 16;

  GenerationTimes(const GenerationBegin& begin, uint32_t label_set)
      : begin_(begin), label_set_(label_set) {}

  const GenerationBegin& begin() const noexcept { return begin_; }
  uint32_t label_set() const noexcept { return label_set_; }
  size_t waiting() const noexcept { return waiting_.size(); }

  // A further step of it begins: what waited for the last one to stand is counted, if nothing else
  // is open about it.
  void step_begins(Aggregates& totals, double ns_per_tick);
  void step_ends(StepKind kind, uint64_t end_ticks, uint32_t detail);
  // False when it was given up before.
  bool commit(const StepCommit& commit, Aggregates& totals, double ns_per_tick);
  // Of one row of a step, told for itself.
  void commit_row(StepKind kind, uint32_t row, uint32_t tokens, uint64_t end_ticks,
                  Aggregates& totals, double ns_per_tick);
  // There is no room to wait: what would have to, and all that follows it, is left out, since the
  // times after a hole would be wrong.
  void give_up_rest() noexcept { is_given_up_ = is_given_up_ || waiting_.size() > 1; }
  // What the mask of a step says of the prompt's padding, up to the first commit. `rows` 0:
  // nothing.
  void see_mask(uint32_t rows, int64_t valid_tokens, bool is_unread);
  // Counts what is certain now and forgets the rest.
  void end(const GenerationEnd& end, Aggregates& totals, double ns_per_tick);

  // Of the prompt, over all rows; -1 unknown.
  int64_t prompt_tokens() const;
  // Tokens of the longest row; -1 where they are unknown, or the time between them means nothing.
  // After end().
  int64_t output_len() const;
  uint64_t first_commit_ticks() const noexcept { return first_commit_ticks_; }  // after end()
  uint64_t last_commit_ticks() const noexcept { return last_commit_ticks_; }

 private:
  bool is_certain(const StepCommit& commit) const;
  void count(const StepCommit& commit, std::span<const uint32_t> row_lengths, Aggregates& totals,
             double ns_per_tick);
  void count_rows(const StepCommit& commit, uint32_t tokens_each,
                  std::span<const uint32_t> row_lengths, Aggregates& totals, double ns_per_tick);
  void note_declared(uint64_t end_ticks);
  void add_gaps(StepKind kind, uint64_t ticks, uint64_t times, Aggregates& totals,
                double ns_per_tick) const;
  void add_tokens(StepKind kind, uint64_t tokens, Aggregates& totals);
  void end_beams(const GenerationEnd& end, Aggregates& totals);

  GenerationBegin begin_;
  uint32_t label_set_;
  std::deque<StepCommit> waiting_;
  bool is_last_open_ = false;  // the last of them is of the last step
  // By row.
  std::vector<uint64_t> last_ticks_;  // of the last commit, 0 none yet
  std::vector<uint64_t> row_tokens_;

  bool is_given_up_ = false;
  bool has_committed_ = false;
  bool has_unread_mask_ = false;
  uint32_t masked_rows_ = 0;  // 0: no mask
  int64_t masked_tokens_ = 0;
  StepKind last_kind_ = StepKind::kOther;
  uint64_t last_end_ticks_ = 0;  // of the last step that was no draft
  bool is_last_declared_ = false;
  uint64_t steps_untold_ = 0;  // that ended, and of whose commits nobody has spoken
  uint64_t tokens_out_ = 0;    // counted
  uint32_t last_declared_tokens_ = kNone32;
  uint64_t first_declared_ticks_ = 0;
  uint64_t first_commit_ticks_ = 0;
  uint64_t last_commit_ticks_ = 0;
  std::optional<uint32_t> longest_row_;  // told at the end
};

}  // namespace pertoken
