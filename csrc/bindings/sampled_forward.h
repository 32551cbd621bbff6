// The detail that a root's forward gets, for as long as it runs: all that was selected, or what the
// recorder's sampler chose. Hot, under the GIL, on the model's thread.
#pragma once

#include <cstdint>

#include "core/recorder.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

class SampledForward {
 public:
  // Of a step that is only this forward; is_first: of its request, or nearly so.
  static SampledForward choose(Recorder& recorder, ThreadBuffer& buffer, StepKind kind,
                               bool is_first, uint32_t step) noexcept {
    Sampler* sampler = recorder.sampler();
    if (sampler == nullptr) return {nullptr, kind, -1, 0};
    return sampled(*sampler, buffer, kind, is_first, step);
  }
  // Of a further forward in a step for which this was chosen.
  static SampledForward again(Recorder& recorder, StepKind kind, int level,
                              float probability) noexcept {
    return {recorder.sampler(), kind, level, probability};
  }

  int level() const noexcept { return level_; }
  // Of any detail, as it was before the choice.
  float probability() const noexcept { return probability_; }
  // What belongs into ThreadBuffer::open_detail meanwhile.
  uint32_t open_detail() const noexcept {
    if (sampler_ == nullptr) return kSpans;
    const uint32_t detail = sampler_->detail(level_);
    return detail | left_out(kSpans & ~detail);
  }
  void settle(ThreadBuffer& buffer, uint64_t dur_ticks) const noexcept {
    if (sampler_ != nullptr) sampler_->settle(buffer.sampling, kind_, level_, dur_ticks);
  }

 private:
  static constexpr uint32_t kSpans = kDetailLayers | kDetailAll;

  static SampledForward sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                bool is_first, uint32_t step) noexcept;

  SampledForward(Sampler* sampler, StepKind kind, int level, float probability) noexcept
      : sampler_(sampler), kind_(kind), level_(level), probability_(probability) {}

  Sampler* sampler_;  // may be null
  StepKind kind_;
  int level_;
  float probability_;
};

}  // namespace pertoken::bindings
