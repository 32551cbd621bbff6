// The totals of what logits said of the tokens that were committed. What a position's logits say
// and whether its token was committed are told apart, either first: of a batch some rows may have
// ended unseen, of what is verified some may be refused, and what a GPU tells comes late. So each
// waits for the other. Used by the collector only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/record.h"
#include "core/token_logits.h"
#include "core/value_totals.h"

namespace pertoken {

enum class LogitSignal : uint8_t { kTop1Prob, kMargin, kEntropy, kLogprob };

class CommittedLogits {
 public:
  static constexpr size_t kSignals = 4;
  // So many steps are told apart at a time, and fewer where they take more memory: the oldest are
  // given up.
  static constexpr int64_t kSteps = 8192;
  static constexpr size_t kWaitingBytes = size_t{8} << 20;
  static constexpr uint32_t kMostRows = 1u << 16;

  // From now on somebody may tell of logits; before, nothing is taken.
  void follow() { steps_.resize(static_cast<size_t>(kSteps)); }

  // A token may be told twice, the second time with its log-probability.
  void see(const TokenLogits& token);
  // How many tokens the step has committed to the row, once that is certain.
  void commit(int64_t step, StepKind kind, uint32_t row, uint32_t tokens);

  // By kind and signal; those that were never met have no observations.
  const std::array<ValueTotals, kStepKinds * kSignals>& totals() const noexcept { return totals_; }

 private:
  static constexpr uint32_t kCounted = 1u << 31;

  struct Step {
    int64_t number = kNoStep;
    std::vector<TokenLogits> told{};    // by row and place; those that are counted have no step
    std::vector<uint32_t> committed{};  // by row, one more than its tokens; 0 unknown
    size_t open_tokens = 0;             // told, of rows that are not counted
    size_t open_rows = 0;               // committed, and not counted
    StepKind kind = StepKind::kOther;
    bool lacks_logprob = false;  // of a token that is counted; it may be told yet
  };

  Step& at(int64_t number) noexcept { return steps_[static_cast<size_t>(number % kSteps)]; }
  Step* find(int64_t number) noexcept;
  void forget(Step& step) noexcept;
  void count_row(Step& step, uint32_t row);
  void add(LogitSignal signal, const Step& step, double weight, float value);

  std::vector<Step> steps_;  // a step stands at its number modulo the length
  int64_t newest_ = -1;
  int64_t oldest_ = 0;  // that may be waited for
  size_t waiting_bytes_ = 0;
  std::array<ValueTotals, kStepKinds * kSignals> totals_{};
};

}  // namespace pertoken
