// The detail that a step gets, for as long as its forward runs: all that was selected, or what the
// recorder's sampler chose. Hot, under the GIL, on the model's thread.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/logit_rows.h"
#include "bindings/scope.h"
#include "core/recorder.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

ObservedStep sampled_observation(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                 bool is_first, StepPlace place, PackedChoices& choices) noexcept;

// Whether a step that begins is observed: its weight, 0 when it is not. By the sampler, which notes
// it in `choices`, or at the recorder's fixed rate.
inline ObservedStep choose_observation(Recorder& recorder, ThreadBuffer& buffer, StepKind kind,
                                       bool is_first, StepPlace place,
                                       PackedChoices& choices) noexcept {
  const auto number = static_cast<uint8_t>(kind);
  if (Sampler* sampler = recorder.sampler()) {
    if (!sampler->observes()) return {.weight = 0, .kind = number};
    return sampled_observation(*sampler, buffer, kind, is_first, place, choices);
  }
  return {.weight = recorder.observation_weight(number), .kind = number};
}

// After a step of which observing took so long.
inline void charge_observation(Recorder& recorder, ThreadBuffer& buffer, StepKind kind,
                               const ObservedStep& observed) noexcept {
  if (Sampler* sampler = recorder.sampler()) {
    sampler->charge(buffer.sampling, SampleDetail::kObservations, kind,
                    observed.weight == 0 ? -1 : 0, observed.ticks);
  }
}

// The weight of the logits of a step that begins, by the recorder's sampler, which notes it in
// `choices`; 0 where they are not read.
float sampled_logits(Sampler& sampler, ThreadBuffer& buffer, StepKind kind, bool is_first,
                     PackedChoices& choices) noexcept;

// What reading the logits of a step has taken, and, where `is_more`, what came later of them: when
// it was known which tokens were chosen. `inside`: the step in whose time that was, kNone32 where
// it was in none. Nobody asks for it where the recorder does not sample.
void charge_logits(Recorder& recorder, ThreadBuffer& buffer, const LogitStep& of, uint64_t ticks,
                   uint32_t inside, bool is_more) noexcept;

class SampledForward {
 public:
  // Of a step that is only this forward; is_first: of its request, or nearly so. `before`: what was
  // chosen for the step already.
  static SampledForward choose(Recorder& recorder, ThreadBuffer& buffer, StepKind kind,
                               bool is_first, StepPlace place, PackedChoices before) noexcept {
    Sampler* sampler = recorder.sampler();
    if (sampler == nullptr) return {nullptr, kind, -1, before, 0};
    if (!sampler->samples(SampleDetail::kSpans)) return {sampler, kind, -1, before, 0};
    return sampled(*sampler, buffer, kind, is_first, place, before);
  }
  // Of a forward in a step that the user or an engine declares: chosen with the first, which counts
  // already, and noted for the others.
  static SampledForward in_region(Recorder& recorder, ThreadBuffer& buffer, StepKind kind,
                                  uint32_t step, ScopeEntry& entry) noexcept {
    if (entry.forwards != 1) return {recorder.sampler(), kind, entry.level, entry.choices, 0};
    const SampledForward first =
        choose(recorder, buffer, kind, false, StepPlace::kOwn, entry.choices);
    first.push_detail(buffer, step);
    entry.level = first.level_;
    entry.choices = first.choices_;
    return first;
  }
  // Once a step, after it has begun.
  void push_detail(ThreadBuffer& buffer, uint32_t step) const noexcept {
    if (sampler_ != nullptr && level_ >= 0) push_level(buffer, step);
  }

  // For the record of the step's end.
  PackedChoices choices() const noexcept { return choices_; }
  // What belongs into ThreadBuffer::open_detail meanwhile.
  uint32_t open_detail() const noexcept {
    if (sampler_ == nullptr || !sampler_->samples(SampleDetail::kSpans)) return kDetailSpans;
    const uint32_t detail = sampler_->bits(SampleDetail::kSpans, level_);
    return detail | left_out(kDetailSpans & ~detail);
  }
  // `observed_ticks`: of `dur_ticks`, what observing took; of values in values it is told twice.
  void settle(ThreadBuffer& buffer, uint64_t dur_ticks, uint64_t observed_ticks,
              const UnrecordedCalls& unrecorded) const noexcept {
    if (sampler_ == nullptr) return;
    const uint64_t own_ticks = dur_ticks > observed_ticks ? dur_ticks - observed_ticks : 0;
    sampler_->end_step(buffer.sampling, kind_, level_, own_ticks, unrecorded);
  }

 private:
  static SampledForward sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                bool is_first, StepPlace place, PackedChoices before) noexcept;

  SampledForward(Sampler* sampler, StepKind kind, int level, PackedChoices choices,
                 double weight) noexcept
      : sampler_(sampler), kind_(kind), level_(level), choices_(choices), weight_(weight) {}

  void push_level(ThreadBuffer& buffer, uint32_t step) const noexcept;

  Sampler* sampler_;  // may be null
  StepKind kind_;
  int level_;
  PackedChoices choices_;
  double weight_;  // of the spans
};

// What of the forward that has ended the wrappers have not recorded; no record where that is
// nothing.
void push_unrecorded(ThreadBuffer& buffer, uint32_t step) noexcept;

// Whether spans are left out of steps that say nothing of it.
inline bool samples_spans(Recorder& recorder) noexcept {
  const Sampler* sampler = recorder.sampler();
  return sampler != nullptr && sampler->samples(SampleDetail::kSpans);
}

}  // namespace pertoken::bindings
