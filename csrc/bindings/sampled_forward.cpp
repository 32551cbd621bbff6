#include "bindings/sampled_forward.h"

#include <bit>

namespace pertoken::bindings {

SampledForward SampledForward::sampled(Sampler& sampler, ThreadBuffer& buffer, StepKind kind,
                                       bool is_first, uint32_t step) noexcept {
  const SampleChoice choice = sampler.decide(buffer.sampling, kind, is_first);
  if (choice.level >= 0) {
    buffer.push({std::bit_cast<uint64_t>(choice.weight), 0,
                 make_tag(RecordType::kStepDetail, sampler.detail(choice.level)),
                 static_cast<uint32_t>(choice.level), choice.level == sampler.top_level() ? 1u : 0u,
                 step});
  }
  return {&sampler, kind, choice.level, static_cast<float>(choice.probability)};
}

}  // namespace pertoken::bindings
