#include "core/committed_logits.h"

#include <algorithm>
#include <cmath>

#include "core/spool_format.h"

namespace pertoken {

namespace {

bool is_before(const TokenLogits& one, const TokenLogits& other) noexcept {
  return one.row != other.row ? one.row < other.row : one.place < other.place;
}

}  // namespace

// nullptr where it was given up.
CommittedLogits::Step* CommittedLogits::find(int64_t number) noexcept {
  if (steps_.empty()) return nullptr;
  newest_ = std::max(newest_, number);
  oldest_ = std::max(oldest_, newest_ - kSteps + 1);
  for (; waiting_bytes_ > kWaitingBytes && oldest_ < newest_; ++oldest_) {
    if (at(oldest_).number == oldest_) forget(at(oldest_));
  }
  if (number < oldest_) return nullptr;
  Step& step = at(number);
  if (step.number != number) {
    forget(step);
    step.number = number;
  }
  return &step;
}

void CommittedLogits::forget(Step& step) noexcept {
  waiting_bytes_ -= step.told.size() * sizeof(TokenLogits) + step.committed.size() * 4;
  step = Step{.number = step.number};
}

void CommittedLogits::see(const TokenLogits& token) {
  Step* step = find(token.step);
  // What was spooled may be damaged.
  const bool is_weight = token.weight >= 1 && token.weight < kLargestWeight;
  if (step == nullptr || token.row >= kMostRows || !is_weight) return;
  const auto at = std::lower_bound(step->told.begin(), step->told.end(), token, is_before);
  if (at == step->told.end() || is_before(token, *at)) {
    step->told.insert(at, token);
    waiting_bytes_ += sizeof(TokenLogits);
    ++step->open_tokens;
  } else if (std::isnan(at->logprob)) {
    at->logprob = token.logprob;
    if (at->step == kNoStep) add(LogitSignal::kLogprob, *step, token.weight, token.logprob);
  }
  count_row(*step, token.row);
}

void CommittedLogits::commit(int64_t number, StepKind kind, uint32_t row, uint32_t tokens) {
  Step* step = find(number);
  if (step == nullptr || row >= kMostRows) return;
  step->kind = kind;
  if (step->committed.size() <= row) {
    waiting_bytes_ += (row + 1 - step->committed.size()) * 4;
    step->committed.resize(row + 1);
  }
  if (step->committed[row] != 0) return;
  step->committed[row] = (tokens + 1) & ~kCounted;
  ++step->open_rows;
  count_row(*step, row);
}

// Once all of its tokens have been told. Of a row to which more is committed than its logits
// choose, nobody knows which tokens they chose.
void CommittedLogits::count_row(Step& step, uint32_t row) {
  if (row >= step.committed.size() || step.committed[row] == 0 ||
      (step.committed[row] & kCounted) != 0) {
    return;
  }
  const size_t tokens = step.committed[row] - 1;
  TokenLogits first_place{};
  first_place.row = row;
  const auto found = std::lower_bound(step.told.begin(), step.told.end(), first_place, is_before);
  TokenLogits* const first = step.told.data() + (found - step.told.begin());
  const auto behind = static_cast<size_t>(step.told.end() - found);
  if (tokens > behind) return;
  if (tokens > 0 && (first[tokens - 1].row != row || first[tokens - 1].place != tokens - 1)) return;
  for (size_t i = 0; i < behind && first[i].row == row; ++i) {
    --step.open_tokens;
    TokenLogits& token = first[i];
    if (i >= tokens) continue;
    token.step = kNoStep;
    add(LogitSignal::kTop1Prob, step, token.weight, token.top1_prob);
    add(LogitSignal::kMargin, step, token.weight, token.margin);
    add(LogitSignal::kEntropy, step, token.weight, token.entropy);
    add(LogitSignal::kLogprob, step, token.weight, token.logprob);
    step.lacks_logprob = step.lacks_logprob || std::isnan(token.logprob);
  }
  step.committed[row] |= kCounted;
  --step.open_rows;
  if (step.open_tokens + step.open_rows == 0 && !step.lacks_logprob) forget(step);
}

void CommittedLogits::add(LogitSignal signal, const Step& step, double weight, float value) {
  if (std::isnan(value)) return;
  const auto number = static_cast<uint32_t>(signal);
  const auto kind = static_cast<uint8_t>(step.kind);
  ValueTotals& totals = totals_[kind * kSignals + number];
  totals.site = number;
  totals.kind = kind;
  totals.values.record(value);
  const bool is_finite = std::isfinite(value);
  const double finite = is_finite ? value : 0;
  totals.weigh(weight, is_finite ? 1 : 0, finite, finite * finite);
}

}  // namespace pertoken
