#include "bindings/sampled_forward.h"

#include <algorithm>
#include <bit>

namespace pertoken::bindings {

SampledForward SampledForward::sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                       bool is_first, StepPlace place,
                                       PackedChoices before) noexcept {
  const SampleChoice choice =
      sampler.decide(buffer.sampling, SampleDetail::kSpans, kind, is_first, place);
  before.add(SampleDetail::kSpans, choice);
  return {&sampler, kind, choice.level, before, choice.weight};
}

void SampledForward::push_level(ThreadBuffer& buffer, uint32_t step) const noexcept {
  const bool is_full = level_ == sampler_->top_level(SampleDetail::kSpans);
  buffer.push({std::bit_cast<uint64_t>(weight_), 0,
               make_tag(RecordType::kStepDetail, sampler_->bits(SampleDetail::kSpans, level_)),
               static_cast<uint32_t>(level_), is_full ? 1u : 0u, step});
}

ObservedStep sampled_observation(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                 bool is_first, StepPlace place, PackedChoices& choices) noexcept {
  const SampleChoice choice =
      sampler.decide(buffer.sampling, SampleDetail::kObservations, kind, is_first, place);
  choices.add(SampleDetail::kObservations, choice);
  return {.weight = choice.weight, .kind = static_cast<uint8_t>(kind)};
}

float sampled_logits(Sampler& sampler, ThreadBuffer& buffer, StepKind kind, bool is_first,
                     PackedChoices& choices) noexcept {
  const SampleChoice choice =
      sampler.decide(buffer.sampling, SampleDetail::kLogits, kind, is_first);
  choices.add(SampleDetail::kLogits, choice);
  return static_cast<float>(choice.weight);
}

void charge_logits(Recorder& recorder, ThreadBuffer& buffer, const LogitStep& of, uint64_t ticks,
                   uint32_t inside, bool is_more) noexcept {
  buffer.logits_ticks += ticks;
  Sampler* sampler = recorder.sampler();
  if (sampler == nullptr || !recorder.active()) return;
  if (is_more) {
    sampler->charge_more(buffer.sampling, SampleDetail::kLogits, of.kind, ticks);
  } else {
    sampler->charge(buffer.sampling, SampleDetail::kLogits, of.kind, 0, ticks);
  }
  buffer.push({ticks, 0, make_tag(RecordType::kLogitsTime, 0), inside, 0, of.step});
}

void push_unrecorded(ThreadBuffer& buffer, uint32_t step) noexcept {
  const auto ticks =
      static_cast<uint32_t>(std::min<uint64_t>(buffer.unrecorded.move_ticks, kNone32));
  buffer.push({buffer.unrecorded.passed_on, buffer.unrecorded.moved,
               make_tag(RecordType::kUnrecorded, 0), ticks, 0, step});
}

}  // namespace pertoken::bindings
