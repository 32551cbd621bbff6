// What the collector knows of the steps of one track that have begun and not ended. Mostly one;
// those of asyncio's tasks overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/record.h"
#include "core/sampler.h"

namespace pertoken {

struct OpenStep {
  int64_t step = kNoStep;
  StepKind kind = StepKind::kOther;
  int level = -1;           // of its spans, where they are sampled
  double exact_weight = 0;  // 1 / the probability of that level
  double weight = 1;        // of its spans in what is added up
  uint64_t records = 0;     // in it, besides its own
  UnrecordedCalls unrecorded{};
  // What logits took so far: its own, and any in its time.
  double logits_ns = 0;
  double logits_inside_ns = 0;
};

class OpenSteps {
 public:
  // Throws std::bad_alloc; then the step before is given up.
  OpenStep& begin(int64_t step, StepKind kind) {
    if (last_.step != kNoStep && !last_has_ended_) {
      if (others_.size() == kMost) others_.erase(others_.begin());
      others_.push_back(last_);
    }
    last_ = {.step = step, .kind = kind};
    last_has_ended_ = false;
    return last_;
  }
  // Null where it is not known, or another one has begun since it ended.
  OpenStep* find(int64_t step) {
    return find_by([=](int64_t own) { return own == step; });
  }
  // By the low half of the number.
  OpenStep* find_low(uint32_t low) {
    return find_by([=](int64_t own) { return static_cast<uint32_t>(own) == low; });
  }
  // What was known of it, if anything. It can be found no longer, unless it was the last to begin.
  std::optional<OpenStep> end(int64_t step) {
    const OpenStep* const known = find(step);
    if (known == nullptr) return std::nullopt;
    const OpenStep ended = *known;
    if (known == &last_) {
      last_has_ended_ = true;
    } else {
      others_.erase(others_.begin() + (known - others_.data()));
    }
    return ended;
  }

 private:
  // The oldest are given up beyond it: those whose ends were dropped are never heard of again.
  static constexpr size_t kMost = 256;

  template <typename Is>
  OpenStep* find_by(Is is) {
    if (last_.step != kNoStep && is(last_.step)) return &last_;
    for (size_t i = others_.size(); i-- > 0;) {
      if (is(others_[i].step)) return &others_[i];
    }
    return nullptr;
  }

  OpenStep last_;  // to begin
  bool last_has_ended_ = false;
  std::vector<OpenStep> others_;  // in the order in which they began
};

}  // namespace pertoken
