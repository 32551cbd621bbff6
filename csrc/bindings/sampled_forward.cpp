#include "bindings/sampled_forward.h"

#include <bit>

namespace pertoken::bindings {

SampledForward SampledForward::sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                       bool is_first, PackedChoices before) noexcept {
  const SampleChoice choice = sampler.decide(buffer.sampling, SampleDetail::kSpans, kind, is_first);
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
                                 bool is_first, PackedChoices& choices) noexcept {
  const SampleChoice choice =
      sampler.decide(buffer.sampling, SampleDetail::kObservations, kind, is_first);
  choices.add(SampleDetail::kObservations, choice);
  return {.weight = choice.weight, .kind = static_cast<uint8_t>(kind)};
}

void push_unrecorded(ThreadBuffer& buffer, uint32_t step) noexcept {
  buffer.push({buffer.unrecorded.passed_on, buffer.unrecorded.moved,
               make_tag(RecordType::kUnrecorded, 0), 0, 0, step});
}

}  // namespace pertoken::bindings
