#include "core/request_tracker.h"

#include <algorithm>
#include <utility>

namespace pertoken {

void RequestTracker::begin_round() {
  take_events();
  std::swap(due_, later_);
}

void RequestTracker::end_round() {
  commit_early_rows();
  const std::vector<RequestEvent> ended = std::exchange(due_, {});
  for (const RequestEvent& event : ended) {
    if (const auto* generation = std::get_if<GenerationEnd>(&event)) apply(*generation);
    if (const auto* request = std::get_if<RequestEnd>(&event)) apply(*request);
  }
}

void RequestTracker::take_events() {
  for (RequestEvent& event : events_.take()) {
    if (const auto* request = std::get_if<RequestBegin>(&event)) {
      apply(*request);
    } else if (const auto* generation = std::get_if<GenerationBegin>(&event)) {
      apply(*generation);
    } else {
      later_.push_back(std::move(event));
    }
  }
}

RequestTracker::Step* RequestTracker::find_step(int64_t step) {
  Step& found = slot(step);
  if (found.number == step) return found.has_begun ? &found : nullptr;
  const auto kept = long_steps_.find(step);
  return kept == long_steps_.end() ? nullptr : &kept->second;
}

// The place of a step that begins. What runs for as long as a thousand others take is what one
// wants to know of, so it is kept elsewhere.
RequestTracker::Step& RequestTracker::open_step(int64_t step) {
  Step& open = slot(step);
  if (open.number == step) return open;
  if (open.has_begun && open.end_ticks == 0) {
    long_steps_.insert_or_assign(open.number, open);
    if (long_steps_.size() > kLongSteps) long_steps_.erase(long_steps_.begin());
  }
  open = Step{.number = step};
  return open;
}

// A generation may have begun since the round did.
GenerationTimes* RequestTracker::find_generation(uint32_t generation) {
  if (generation == kNone32) return nullptr;
  auto found = generations_.find(generation);
  if (found == generations_.end()) {
    take_events();
    found = generations_.find(generation);
  }
  return found == generations_.end() ? nullptr : &found->second;
}

void RequestTracker::see_row(int64_t step, uint32_t context_tokens, uint32_t query_tokens) {
  Step& open = open_step(step);
  open.is_mask_known = open.is_mask_known && context_tokens != kNone32;
  ++open.masked_rows;
  open.masked_tokens += int64_t{context_tokens} + query_tokens;
}

void RequestTracker::begin_step(const StepBegin& begin) {
  Step& open = open_step(begin.step);
  open.start_ticks = begin.start_ticks;
  open.rows = begin.rows;
  open.generation = begin.generation;
  open.detail = begin.detail;
  open.has_begun = true;
  open.query_len = begin.query_len;
  ++totals_.steps(begin.kind).begun;
  if (GenerationTimes* generation = find_generation(begin.generation)) {
    waiting_ -= generation->waiting();
    generation->step_begins(totals_, ns_per_tick_);
    waiting_ += generation->waiting();
    const bool has_mask = open.is_mask_known && open.masked_rows == begin.rows;
    generation->see_mask(has_mask ? open.masked_rows : 0, open.masked_tokens,
                         (begin.detail & kStepMaskUnread) != 0);
  }
}

void RequestTracker::end_step(int64_t step, uint64_t end_ticks, uint32_t detail) {
  Step* open = find_step(step);
  if (open == nullptr) return;
  open->end_ticks = end_ticks;
  open->detail |= detail & (kStepFailed | kStepSeveral);
  const auto kind = step_kind(open->detail);
  GenerationTimes* generation = find_generation(open->generation);
  if (generation != nullptr) {
    generation->step_ends(kind, end_ticks, open->detail);
  }
  StepTotals& totals = totals_.steps(kind);
  count_lengths(*open, totals);
  if ((detail & kStepFailed) != 0) {
    ++totals.failed;
    return;
  }
  const uint64_t wall_ns = to_ns(end_ticks - open->start_ticks, ns_per_tick_);
  totals.wall_ns.record_ns(wall_ns);
  if (generation != nullptr) {
    totals_.requests(generation->label_set()).step_ns[static_cast<size_t>(kind)].record_ns(wall_ns);
  }
}

// The lengths are those of the first forward; of several, only the rows that the user told hold.
void RequestTracker::count_lengths(const Step& step, StepTotals& totals) {
  if (step.rows == kNone32) return;
  const bool has_several = (step.detail & kStepSeveral) != 0;
  if (has_several && (step.detail & kStepRowsDeclared) == 0) return;
  totals.rows += step.rows;
  if (has_several || step.query_len == kNone32) return;
  const bool is_of_all = (step.detail & kStepHasRows) != 0;
  totals.tokens_in += (is_of_all ? 1 : uint64_t{step.rows}) * step.query_len;
}

void RequestTracker::commit(int64_t step, uint32_t tokens, uint32_t before, bool is_total) {
  const Step* ended = find_step(step);
  if (ended == nullptr || ended->end_ticks == 0) {
    tokens_uncounted_ += tokens;
    return;
  }
  const auto kind = step_kind(ended->detail);
  if (!is_total && (ended->detail & kStepFailed) != 0) return;
  GenerationTimes* generation = find_generation(ended->generation);
  if (generation == nullptr) {
    if (is_total) {
      totals_.steps(kind).tokens_committed += tokens;
      commit_unowned_rows(*ended, tokens);
    } else {
      tokens_uncounted_ += uint64_t{tokens} * (ended->rows == kNone32 ? 1 : ended->rows);
    }
    return;
  }
  // The rows of the first of several forwards are not those of the step.
  const bool has_rows = (ended->detail & (kStepSeveral | kStepRowsDeclared)) != kStepSeveral;
  const StepCommit commit{.step = logits_step(*ended),
                          .end_ticks = ended->end_ticks,
                          .rows = has_rows ? ended->rows : kNone32,
                          .tokens = tokens,
                          .before = before,
                          .kind = kind,
                          .is_declared = is_total};
  if (waiting_ >= kWaiting) generation->give_up_rest();
  waiting_ -= generation->waiting();
  const bool is_counted = generation->commit(commit, totals_, ns_per_tick_);
  waiting_ += generation->waiting();
  if (!is_counted) {
    tokens_uncounted_ += uint64_t{tokens} * (is_total || commit.rows == kNone32 ? 1 : commit.rows);
  }
}

// Of a step of no request, each row the same.
void RequestTracker::commit_unowned_rows(const Step& step, uint32_t tokens) {
  if (step.rows == 0 || step.rows > GenerationTimes::kMaxRows || tokens % step.rows != 0) return;
  for (uint32_t row = 0; row < step.rows; ++row) {
    totals_.logits().commit(logits_step(step), step_kind(step.detail), row, tokens / step.rows);
  }
}

int64_t RequestTracker::logits_step(const Step& step) noexcept {
  return (step.detail & kStepSeveral) != 0 ? kNoStep : step.number;
}

void RequestTracker::commit_row(int64_t step, uint32_t row, uint32_t generation, uint32_t tokens) {
  const Step* ended = find_step(step);
  if (ended == nullptr || ended->end_ticks == 0) {
    if (early_commits_.size() < kEarlyCommits) {
      early_commits_.push_back({step, row, generation, tokens});
    } else {
      tokens_uncounted_ += tokens;
    }
    return;
  }
  const auto kind = step_kind(ended->detail);
  totals_.logits().commit(logits_step(*ended), kind, row, tokens);
  // A row without a request of its own belongs to that of the step.
  GenerationTimes* sequences =
      find_generation(generation == kNone32 ? ended->generation : generation);
  if (sequences != nullptr) {
    sequences->commit_row(kind, row, tokens, ended->end_ticks, totals_, ns_per_tick_);
  } else {
    totals_.steps(kind).tokens_committed += tokens;
  }
}

// Called when every ring was read, so that a step that is not here now has not begun to be told, or
// has lost its place.
void RequestTracker::commit_early_rows() {
  for (const EarlyCommit& early : std::exchange(early_commits_, {})) {
    if (find_step(early.step) != nullptr) {
      commit_row(early.step, early.row, early.generation, early.tokens);
    } else {
      tokens_uncounted_ += early.tokens;
    }
  }
}

void RequestTracker::apply(const RequestBegin& begin) {
  ++totals_.requests(begin.label_set).started;
  Request request;
  request.label_set = begin.label_set;
  request.start_ticks = begin.start_ticks;
  requests_.insert_or_assign(begin.request, std::move(request));
  if (requests_.size() > kOpenRequests) {
    requests_.erase(requests_.begin());
    ++requests_uncounted_;
  }
}

void RequestTracker::apply(const GenerationBegin& begin) {
  const auto request = requests_.find(begin.request);
  uint32_t label_set = kOtherLabels;
  if (request != requests_.end()) {
    label_set = request->second.label_set;
    request->second.generations.push_back(begin.generation);
  }
  generations_.insert_or_assign(begin.generation, GenerationTimes(begin, label_set));
  if (generations_.size() > kOpenRequests) {
    waiting_ -= generations_.begin()->second.waiting();
    generations_.erase(generations_.begin());
  }
}

void RequestTracker::apply(const GenerationEnd& end) {
  const auto found = generations_.find(end.generation);
  if (found == generations_.end()) return;
  GenerationTimes& generation = found->second;
  const auto request = requests_.find(generation.begin().request);
  if (!end.is_delegated) {
    waiting_ -= generation.waiting();
    generation.end(end, totals_, ns_per_tick_);
    const int64_t prompt_tokens = generation.prompt_tokens();
    // An engine's request is met anew by a recording that starts again.
    const bool is_met_again = generation.begin().source == CommitSource::kRows &&
                              request != requests_.end() && request->second.has_ended_generation;
    if (prompt_tokens > 0 && !is_met_again) {
      totals_.requests(generation.label_set()).tokens_in += static_cast<uint64_t>(prompt_tokens);
    }
    if (request != requests_.end()) {
      Request& open = request->second;
      open.has_ended_generation = true;
      const uint64_t first = generation.first_commit_ticks();
      if (first != 0 && (open.first_commit_ticks == 0 || first < open.first_commit_ticks)) {
        open.first_commit_ticks = first;
      }
      open.last_commit_ticks = std::max(open.last_commit_ticks, generation.last_commit_ticks());
      const int64_t len = generation.output_len();
      open.output_len = len < 0 || open.output_len < 0 ? -1 : open.output_len + len;
    }
  }
  if (request != requests_.end()) std::erase(request->second.generations, end.generation);
  generations_.erase(found);
}

void RequestTracker::apply(const RequestEnd& end) {
  const auto found = requests_.find(end.request);
  if (found == requests_.end()) return;
  const std::vector<uint32_t> open = found->second.generations;
  for (const uint32_t number : open) {
    const auto generation = generations_.find(number);
    // A generate() that goes on in another task ends by itself.
    if (generation == generations_.end() ||
        generation->second.begin().source == CommitSource::kGenerate)
      continue;
    apply(GenerationEnd{.generation = number,
                        .first_commit_ticks = 0,
                        .has_failed = end.has_failed,
                        .is_delegated = false,
                        .commits_known = true,
                        .row_lengths = std::nullopt});
  }
  const Request& request = found->second;
  RequestTotals& totals = totals_.requests(request.label_set);
  if (end.has_failed) {
    ++totals.failed;
  } else {
    ++totals.finished;
    totals.duration_ns.record_ns(to_ns(end.end_ticks - request.start_ticks, ns_per_tick_));
    const uint64_t first = request.first_commit_ticks;
    if (first != 0) totals.ttft_ns.record_ns(to_ns(first - request.start_ticks, ns_per_tick_));
    const bool is_at_once = request.last_commit_ticks != 0 && request.last_commit_ticks <= first;
    if (first != 0 && request.output_len >= 2 && !is_at_once) {
      const double rest_ns = static_cast<double>(to_ns(end.end_ticks - first, ns_per_tick_));
      totals.tpot_ns.record(rest_ns / static_cast<double>(request.output_len - 1));
    }
  }
  requests_.erase(found);
}

}  // namespace pertoken
