#include "bindings/sampled_forward.h"

#include <bit>

namespace pertoken::bindings {

SampledForward SampledForward::sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                       bool is_first, uint32_t step,
                                       PackedChoices before) noexcept {
  const SampleChoice choice = sampler.decide(buffer.sampling, SampleDetail::kSpans, kind, is_first);
  if (choice.level >= 0) {
    const bool is_full = choice.level == sampler.top_level(SampleDetail::kSpans);
    buffer.push(
        {std::bit_cast<uint64_t>(choice.weight), 0,
         make_tag(RecordType::kStepDetail, sampler.bits(SampleDetail::kSpans, choice.level)),
         static_cast<uint32_t>(choice.level), is_full ? 1u : 0u, step});
  }
  before.add(SampleDetail::kSpans, choice);
  return {&sampler, kind, choice.level, before};
}

ObservedStep sampled_observation(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                 bool is_first, PackedChoices& choices) noexcept {
  const SampleChoice choice =
      sampler.decide(buffer.sampling, SampleDetail::kObservations, kind, is_first);
  choices.add(SampleDetail::kObservations, choice);
  return {.weight = choice.weight, .kind = static_cast<uint8_t>(kind)};
}

}  // namespace pertoken::bindings
