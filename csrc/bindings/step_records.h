// The records at the border of a step, as every way through the root's wrapper writes them. Hot.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/sampled_forward.h"
#include "bindings/step_plan.h"
#include "core/recorder.h"

namespace pertoken::bindings {

inline void push_step_begin(ThreadBuffer& buffer, const StepPlan& plan, uint64_t start_ticks,
                            uint32_t step) noexcept {
  buffer.push({start_ticks, uint64_t{narrow(plan.rows)} << 32 | narrow(plan.query_len),
               make_tag(RecordType::kStepBegin, static_cast<uint32_t>(plan.kind) | plan.flags),
               plan.generation, narrow(plan.past), step});
}

// A step whose forward has ended, and the span of that.
struct EndedStep {
  uint32_t site;
  uint32_t seq;
  uint32_t parent_seq;
  uint32_t step;
  StepKind kind;
  uint64_t start_ticks;
  uint64_t end_ticks;
  uint64_t pushed_before;  // records of the thread, before the forward
  bool has_failed;
  PackedChoices choices;
};

inline void push_step_end(ThreadBuffer& buffer, const EndedStep& ended) noexcept {
  buffer.push({ended.start_ticks, ended.end_ticks, make_tag(RecordType::kSpan, ended.site),
               ended.seq, ended.parent_seq, ended.step});
  const uint32_t flags = (ended.has_failed ? kStepFailed : 0) |
                         (buffer.pushed() == ended.pushed_before + 1 ? kStepBare : 0);
  if (buffer.unrecorded) push_unrecorded(buffer, ended.step);
  const StepCost cost{buffer.observed.ticks, buffer.take_root_ticks(ended.kind)};
  buffer.push({ended.end_ticks, cost.bits(), make_tag(RecordType::kStepEnd, flags),
               static_cast<uint32_t>(ended.choices.bits()),
               static_cast<uint32_t>(ended.choices.bits() >> 32), ended.step});
}

}  // namespace pertoken::bindings
