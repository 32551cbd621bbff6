#include "bindings/plain_decode.h"

#include "bindings/call_slots.h"
#include "bindings/device_calls.h"
#include "bindings/scope.h"
#include "bindings/step_forward.h"
#include "bindings/step_records.h"
#include "bindings/tensor_sizes.h"

namespace pertoken::bindings {

bool plan_plain_decode(RootCall& call, const GenerationState* state, const ThreadBuffer& buffer,
                       PyObject* args, PyObject* kwargs, StepPlan& plan) {
  const StepsAhead& ahead = buffer.sampling.ahead;
  Recorder& recorder = *call.base.recorder;
  if (ahead.plain == 0 || ahead.kind != StepKind::kDecode || has_open_captures(recorder) ||
      current_scope() != nullptr) {
    return false;
  }
  Arguments found;
  if (!call.signature.find_all(args, kwargs, found)) return false;
  const auto of = [&](ArgumentRole role) { return found[static_cast<size_t>(role)]; };
  PyObject* const ids = of(ArgumentRole::kIds);
  plan.cache = of(ArgumentRole::kCache);
  int64_t sizes[2] = {};
  if (ids == nullptr || plan.cache == nullptr || kept_sizes(ids, sizes, 2) != 2 || sizes[1] != 1) {
    return false;
  }
  if (state == nullptr) {
    if (of(ArgumentRole::kMask) != nullptr) return false;
    plan.past = call.last_cache.length(plan.cache);
    if (plan.past <= 0) return false;
  } else {
    // Where nothing but the length is new since a step before.
    if (state->depth != 0 || state->commits == 0 || state->steps < kFavouredSteps ||
        plan.cache != state->last_cache || state->past <= 0 || recorder.logit_reader() != nullptr) {
      return false;
    }
    plan.past = state->past;
    plan.generation = state->generation;
    plan.keep = integer_argument(of(ArgumentRole::kKeep), 0);
  }
  plan.kind = StepKind::kDecode;
  plan.rows = sizes[0];
  plan.query_len = 1;
  if (ahead.choices.probability(SampleDetail::kSpans) > 0) plan.flags = kStepSampled;
  return true;
}

PyObject* call_plain_decode(RootCall& call, GenerationState* state, const StepPlan& plan,
                            PyObject* args, PyObject* kwargs, ThreadBuffer& buffer,
                            RootTime& time) {
  Recorder& recorder = *call.base.recorder;
  const PackedChoices choices = buffer.sampling.ahead.choices;
  Sampler::take_place(buffer.sampling, StepKind::kDecode, false);
  const uint32_t step = recorder.next_step();
  if (state != nullptr) note_step(*state, plan, call.signature.knows(ArgumentRole::kKeep), step);
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail =
      (plan.flags & kStepSampled) != 0 ? left_out(kDetailSpans) : uint32_t{kDetailSpans};
  buffer.observed.ticks = 0;
  buffer.observed.weight = 0;
  begin_slots(recorder, buffer);
  const uint64_t start_ticks = now_ticks();
  time.begin_forward(buffer, StepKind::kDecode, start_ticks);
  push_step_begin(buffer, plan, start_ticks, step);
  if (state != nullptr) close_gap(*state, buffer, start_ticks, step);
  const uint32_t outer_seq = buffer.open_seq;
  const uint32_t seq = tls_thread_state->next_seq();
  const uint64_t pushed_before = buffer.pushed();
  buffer.open_seq = seq;
  buffer.open_step = step;
  PyObject* result = call_step_forward(call, args, kwargs, buffer, seq, step, StepKind::kDecode);
  const uint64_t end_ticks = now_ticks();
  time.end_forward(buffer, end_ticks);
  end_slots(recorder);
  recorder.sampler()->end_plain_step(buffer.sampling, StepKind::kDecode, end_ticks - start_ticks,
                                     buffer.unrecorded);
  buffer.open_seq = outer_seq;
  buffer.open_step = kNone32;
  buffer.open_detail = outer_detail;
  if (recorder.active()) {
    push_step_end(buffer, {call.base.site, seq, outer_seq, step, StepKind::kDecode, start_ticks,
                           end_ticks, pushed_before, result == nullptr, choices});
  }
  if (state != nullptr) {
    state->last_end_ticks = end_ticks;
    open_gap(*state, buffer, end_ticks);
  }
  return result;
}

}  // namespace pertoken::bindings
