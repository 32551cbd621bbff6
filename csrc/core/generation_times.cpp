#include "core/generation_times.h"

#include <algorithm>
#include <numeric>

namespace pertoken {

bool GenerationTimes::is_certain(const StepCommit& commit) const {
  return commit.is_declared || commit.rows == 1 || !begin_.can_end_rows ||
         (commit.before == 0 && commit.tokens == 1);
}

void GenerationTimes::step_begins(Aggregates& totals, double ns_per_tick) {
  is_last_open_ = false;
  while (!waiting_.empty() && is_certain(waiting_.front())) {
    count(waiting_.front(), {}, totals, ns_per_tick);
    waiting_.pop_front();
  }
}

void GenerationTimes::step_ends(StepKind kind, uint64_t end_ticks, uint32_t detail) {
  if ((detail & kStepHasRows) == 0) ++steps_untold_;
  if (kind == StepKind::kDraft) return;
  last_kind_ = kind;
  last_end_ticks_ = end_ticks;
  is_last_declared_ = (detail & kStepDeclared) != 0;
  last_declared_tokens_ = kNone32;
}

bool GenerationTimes::commit(const StepCommit& commit, Aggregates& totals, double ns_per_tick) {
  has_committed_ = true;
  if (commit.is_declared && steps_untold_ > 0) --steps_untold_;
  if (is_given_up_) return false;
  if (begin_.is_beam_search) {
    if (commit.is_declared) last_declared_tokens_ = commit.tokens;
    return true;
  }
  if (commit.is_declared && waiting_.empty()) {
    count(commit, {}, totals, ns_per_tick);
    return true;
  }
  if (is_last_open_) waiting_.pop_back();  // of the same step: the later one holds
  waiting_.push_back(commit);
  is_last_open_ = !commit.is_declared;
  return true;
}

void GenerationTimes::see_mask(uint32_t rows, int64_t valid_tokens, bool is_unread) {
  if (has_committed_) return;
  has_unread_mask_ = has_unread_mask_ || is_unread;
  masked_rows_ = rows;
  masked_tokens_ = valid_tokens;
}

void GenerationTimes::count(const StepCommit& commit, std::span<const uint32_t> row_lengths,
                            Aggregates& totals, double ns_per_tick) {
  const bool has_rows = commit.rows > 0 && commit.rows <= kMaxRows;
  if (!commit.is_declared) {
    if (has_rows) count_rows(commit, commit.tokens, row_lengths, totals, ns_per_tick);
    return;
  }
  if (commit.tokens == 0 ||
      (begin_.source == CommitSource::kGenerate && commit.kind == StepKind::kDraft))
    return;
  note_declared(commit.end_ticks);
  if (has_rows && commit.tokens % commit.rows == 0) {
    count_rows(commit, commit.tokens / commit.rows, {}, totals, ns_per_tick);
  } else {
    add_tokens(commit.kind, commit.tokens, totals);
  }
}

void GenerationTimes::count_rows(const StepCommit& commit, uint32_t tokens_each,
                                 std::span<const uint32_t> row_lengths, Aggregates& totals,
                                 double ns_per_tick) {
  if (last_ticks_.size() < commit.rows) {
    last_ticks_.resize(commit.rows, 0);
    row_tokens_.resize(commit.rows, 0);
  }
  const auto record = [&](uint64_t ticks, uint64_t times) {
    add_gaps(commit.kind, ticks, times, totals, ns_per_tick);
  };
  // Rows mostly share their gap, so equal ones are counted together.
  uint64_t gap_ticks = 0;
  uint64_t gaps = 0;
  uint64_t at_once = 0;
  uint64_t total = 0;
  for (uint32_t row = 0; row < commit.rows; ++row) {
    uint32_t tokens = tokens_each;
    if (!row_lengths.empty()) {
      const uint32_t left = row_lengths[row] - std::min(row_lengths[row], commit.before);
      tokens = std::min(tokens, left);
    }
    totals.logits().commit(commit.step, commit.kind, row, tokens);
    if (tokens == 0) continue;
    if (last_ticks_[row] != 0 && last_ticks_[row] <= commit.end_ticks) {
      const uint64_t ticks = commit.end_ticks - last_ticks_[row];
      if (ticks != gap_ticks) {
        record(gap_ticks, gaps);
        gap_ticks = ticks;
        gaps = 0;
      }
      ++gaps;
    }
    last_ticks_[row] = std::max(last_ticks_[row], commit.end_ticks);
    row_tokens_[row] += tokens;
    at_once += tokens - 1;
    total += tokens;
  }
  record(gap_ticks, gaps);
  record(0, at_once);
  add_tokens(commit.kind, total, totals);
  if (total > 0) last_commit_ticks_ = std::max(last_commit_ticks_, commit.end_ticks);
}

void GenerationTimes::commit_row(StepKind kind, uint32_t row, uint32_t tokens, uint64_t end_ticks,
                                 Aggregates& totals, double ns_per_tick) {
  has_committed_ = true;
  if (tokens == 0) return;
  note_declared(end_ticks);
  // The rows of a generation that is one of them stand where the engine puts them.
  const uint32_t place = begin_.source == CommitSource::kRows ? 0 : row;
  if (place >= kMaxRows) {
    add_tokens(kind, tokens, totals);
    return;
  }
  if (last_ticks_.size() <= place) {
    last_ticks_.resize(place + 1, 0);
    row_tokens_.resize(place + 1, 0);
  }
  if (last_ticks_[place] != 0 && last_ticks_[place] <= end_ticks) {
    add_gaps(kind, end_ticks - last_ticks_[place], 1, totals, ns_per_tick);
  }
  add_gaps(kind, 0, tokens - 1, totals, ns_per_tick);
  last_ticks_[place] = std::max(last_ticks_[place], end_ticks);
  row_tokens_[place] += tokens;
  last_commit_ticks_ = std::max(last_commit_ticks_, end_ticks);
  add_tokens(kind, tokens, totals);
}

void GenerationTimes::note_declared(uint64_t end_ticks) {
  if (first_declared_ticks_ == 0 || end_ticks < first_declared_ticks_) {
    first_declared_ticks_ = end_ticks;
  }
}

void GenerationTimes::add_gaps(StepKind kind, uint64_t ticks, uint64_t times, Aggregates& totals,
                               double ns_per_tick) const {
  const auto ns = static_cast<double>(to_ns(ticks, ns_per_tick));
  totals.steps(kind).itl_ns.record(ns, times);
  totals.requests(label_set_).itl_ns.record(ns, times);
}

void GenerationTimes::add_tokens(StepKind kind, uint64_t tokens, Aggregates& totals) {
  tokens_out_ += tokens;
  totals.steps(kind).tokens_committed += tokens;
  totals.requests(label_set_).tokens_out += tokens;
}

void GenerationTimes::end(const GenerationEnd& end, Aggregates& totals, double ns_per_tick) {
  if (begin_.is_beam_search) {
    end_beams(end, totals);
  } else {
    std::span<const uint32_t> lengths;
    if (end.commits_known && end.row_lengths) lengths = *end.row_lengths;
    // What came of the last step of a call that raised is unknown.
    if (end.has_failed && is_last_open_) waiting_.pop_back();
    for (const StepCommit& commit : waiting_) {
      const bool by_length =
          !commit.is_declared && !lengths.empty() && lengths.size() == commit.rows;
      if (by_length || commit.is_declared || (end.commits_known && is_certain(commit))) {
        count(commit, by_length ? lengths : std::span<const uint32_t>(), totals, ns_per_tick);
      }
    }
    waiting_.clear();
  }
  if (end.row_lengths) {
    const auto longest = std::max_element(end.row_lengths->begin(), end.row_lengths->end());
    longest_row_ = longest == end.row_lengths->end() ? 0 : *longest;
    // Where the steps did not tell, what was returned does; of which step it was stays unknown.
    const auto total =
        std::accumulate(end.row_lengths->begin(), end.row_lengths->end(), uint64_t{0});
    if (total > tokens_out_) totals.requests(label_set_).tokens_out += total - tokens_out_;
  }
  const bool is_declared = first_declared_ticks_ != 0 && begin_.source != CommitSource::kRows;
  first_commit_ticks_ = is_declared ? first_declared_ticks_ : end.first_commit_ticks;
}

// Everything at the end of the last step. The rows of a step are beams, not sequences.
void GenerationTimes::end_beams(const GenerationEnd& end, Aggregates& totals) {
  if (end.has_failed || !end.row_lengths || last_end_ticks_ == 0) return;
  uint64_t tokens = 0;
  if (!is_last_declared_) {
    tokens = std::accumulate(end.row_lengths->begin(), end.row_lengths->end(), uint64_t{0});
  } else if (last_declared_tokens_ != kNone32) {
    tokens = last_declared_tokens_;
    if (tokens > 0) first_declared_ticks_ = last_end_ticks_;
  }
  add_tokens(last_kind_, tokens, totals);
  last_commit_ticks_ = last_end_ticks_;
}

int64_t GenerationTimes::prompt_tokens() const {
  if (begin_.prompt_tokens >= 0 || begin_.prompt_rows < 0) return begin_.prompt_tokens;
  if (has_unread_mask_) return -1;
  if (masked_rows_ == 0) return begin_.prompt_rows * begin_.prompt_length;
  // A step may have several rows for one of the prompt.
  if (begin_.prompt_rows == 0 || masked_rows_ % begin_.prompt_rows != 0) return -1;
  return masked_tokens_ * begin_.prompt_rows / masked_rows_;
}

int64_t GenerationTimes::output_len() const {
  if (begin_.is_beam_search) return -1;
  if (longest_row_) return *longest_row_;
  if (begin_.source == CommitSource::kRows) return -1;  // some of it was not seen
  if (steps_untold_ > 0) return -1;
  const auto longest = std::max_element(row_tokens_.begin(), row_tokens_.end());
  return longest == row_tokens_.end() ? 0 : static_cast<int64_t>(*longest);
}

}  // namespace pertoken
