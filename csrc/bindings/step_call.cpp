#include "bindings/step_call.h"

#include <memory>
#include <vector>

#include "bindings/call_slots.h"
#include "bindings/declared_logits.h"
#include "bindings/device_calls.h"
#include "bindings/host_tensor.h"
#include "bindings/logit_reader.h"
#include "bindings/request_numbers.h"
#include "bindings/sampled_forward.h"
#include "bindings/step_forward.h"
#include "bindings/step_inputs.h"
#include "bindings/step_plan.h"
#include "bindings/step_records.h"
#include "bindings/step_region.h"

namespace pertoken::bindings {

namespace {

PyObject* mask_of(const RootCall& call, PyObject* args, PyObject* kwargs) {
  return call.signature.find(ArgumentRole::kMask, args, kwargs);
}

// Before the forward: what runs inside an observed step is to know it by. Of others, what becomes a
// part of a graph is, since every replay is another step.
void open_observed(const Recorder& recorder, const ObservedStep& observed, const StepPlan& plan,
                   PyObject* mask, std::vector<ValidRun>& valid, ThreadBuffer& buffer) {
  buffer.observed.ticks = observed.ticks;
  buffer.observed.weight = 0;
  if ((observed.weight == 0 && !has_open_captures(recorder)) || is_being_traced()) return;
  buffer.open_detail |= kDetailActivations;
  buffer.observed = observed;
  buffer.observed.rows = buffer.observed.batch_rows = plan.rows;
  buffer.observed.positions = plan.query_len;
  if (mask == nullptr || plan.rows < 1) return;
  if (valid_runs(mask, plan.rows, plan.past, plan.query_len, valid)) {
    buffer.observed.valid = &valid;
  }
}

// After it. `step` is that of what the root itself put out.
void close_observed(const RootCall& call, ThreadBuffer& buffer, uint32_t step, PyObject* result) {
  if ((buffer.open_detail & kDetailActivations) == 0) return;
  const uint32_t outer_step = buffer.open_step;
  buffer.open_step = step;
  observe_result(call.base, buffer, result);
  buffer.open_step = outer_step;
  buffer.observed.valid = nullptr;
}

// Whether what was decided of a step can be decided of those behind it: it got nothing, and theirs
// are not logits, which call_step() alone reads.
bool may_go_on(PackedChoices choices) {
  return !choices.got_any() && choices.probability(SampleDetail::kLogits) == 0;
}

LogitStep logit_step(const StepPlan& plan, uint32_t step) {
  return {step, plan.kind, plan.rows, plan.query_len, plan.past, plan.keep};
}

// A forward in a step that the user or an engine declares, and that is begun already. The caller
// holds `region`. Apart, so that other steps pay for no room for it.
[[gnu::noinline]] PyObject* call_in_region(RootCall& call, const StepPlan& plan, PyObject* args,
                                           PyObject* kwargs, ThreadBuffer& buffer, Scope* region,
                                           uint32_t step, RootTime& time) {
  Recorder& recorder = *call.base.recorder;
  ScopeEntry& entry = region->entries[recorder.slot()];
  const uint32_t parent = buffer.open_seq != 0 ? buffer.open_seq : enclosing(recorder).seq;
  const SampledForward sampled =
      SampledForward::in_region(recorder, buffer, region->step_kind, step, entry);
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail = sampled.open_detail();
  std::vector<ValidRun> valid;
  PyObject* const mask = mask_of(call, args, kwargs);
  open_observed(recorder, entry.observed, plan, mask, valid, buffer);
  begin_slots(recorder, buffer);
  if (buffer.observed.weight != 0) place_told_rows(region, buffer.observed, valid);
  LogitReader* const logits = entry.forwards == 1 ? recorder.logit_reader() : nullptr;
  std::unique_ptr<DeclaredLogits> declared;
  if (logits != nullptr) {
    declared = begin_declared_logits(*logits, recorder, buffer, region, logit_step(plan, step),
                                     {call.signature.find(ArgumentRole::kIds, args, kwargs), mask,
                                      call.signature.find(ArgumentRole::kKeep, args, kwargs)});
  }
  const uint64_t observed_before = buffer.observed.ticks;
  const uint64_t start_ticks = now_ticks();
  time.begin_forward(buffer, region->step_kind, start_ticks);
  uint64_t& root_ticks = buffer.root_ticks[static_cast<size_t>(region->step_kind)];
  PyObject* result =
      recorder.device_calls() == nullptr
          ? timed_forward(call, args, kwargs, buffer, parent, step)
          : call_timed_on_devices(call, args, kwargs, buffer, parent, step, root_ticks);
  const uint64_t end_ticks = now_ticks();
  const uint64_t dur_ticks = end_ticks - start_ticks;
  time.end_forward(buffer, end_ticks);
  end_slots(recorder);
  if (recorder.active() && buffer.unrecorded) push_unrecorded(buffer, step);
  sampled.settle(buffer, dur_ticks, buffer.observed.ticks - observed_before, buffer.unrecorded);
  close_observed(call, buffer, step, result);
  // NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): declared only where there are logits
  if (declared != nullptr) end_declared_logits(*logits, *declared, recorder, buffer, result);
  entry.observed.ticks = buffer.observed.ticks;
  buffer.open_detail = outer_detail;
  return result;
}

}  // namespace

PyObject* call_step(RootCall& call, GenerationState* state, PyObject* args, PyObject* kwargs,
                    ThreadBuffer& buffer, RootTime& time) {
  Recorder& recorder = *call.base.recorder;
  StepPlan plan = plan_step(call.signature, call.last_cache, recorder, state, args, kwargs);
  const bool keep_known = call.signature.knows(ArgumentRole::kKeep);
  Scope* scope = current_scope();
  if (state == nullptr && scope != nullptr) {
    if (Scope* request = scope->nearest_open(&Scope::request)) {
      plan.generation = request_generation(request, recorder);
      scope = current_scope();  // Python was asked
    }
  }
  Scope* step_region = scope == nullptr ? nullptr : scope->nearest_open(&Scope::step);
  if (step_region != nullptr) {
    // Its step may be left meanwhile. Not by a destructor: see begin_slots().
    Py_INCREF(reinterpret_cast<PyObject*>(step_region));
    const uint32_t step = begin_step_region(
        step_region, recorder, buffer,
        {.rows = narrow(plan.rows), .query_len = narrow(plan.query_len), .past = narrow(plan.past)},
        plan.generation);
    // What a forward of generate() commits here is for the user's step to say.
    if (state != nullptr) note_step(*state, plan, keep_known, kNone32);
    PyObject* result = call_in_region(call, plan, args, kwargs, buffer, step_region, step, time);
    if (state != nullptr) state->last_end_ticks = now_ticks();
    Py_DECREF(reinterpret_cast<PyObject*>(step_region));
    return result;
  }

  const uint32_t step = recorder.next_step();
  PyObject* mask = state == nullptr || state->commits == 0 ? mask_of(call, args, kwargs) : nullptr;
  if (mask != nullptr && plan.rows > 0) push_padding(plan, mask, buffer, step);
  const bool is_favoured = state != nullptr && state->steps < kFavouredSteps;
  const StepPlace place = Sampler::take_place(buffer.sampling, plan.kind, is_favoured);
  PackedChoices choices;
  LogitReader* const logits = state == nullptr ? nullptr : recorder.logit_reader();
  const bool reads_logits =
      logits != nullptr &&
      begin_logits(*logits, *state, buffer, logit_step(plan, step),
                   call.signature.find(ArgumentRole::kIds, args, kwargs), is_favoured, choices);
  if (state != nullptr) note_step(*state, plan, keep_known, step);

  if (samples_spans(recorder)) plan.flags |= kStepSampled;
  const ObservedStep observed =
      choose_observation(recorder, buffer, plan.kind, is_favoured, place, choices);
  const SampledForward sampled =
      SampledForward::choose(recorder, buffer, plan.kind, is_favoured, place, choices);
  Sampler* const sampler = recorder.sampler();
  if (sampler != nullptr && plan.kind == StepKind::kDecode && !is_favoured &&
      may_go_on(sampled.choices())) {
    sampler->decide_ahead(buffer.sampling, plan.kind, sampled.choices());
  }
  std::vector<ValidRun> valid;
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail = sampled.open_detail();
  open_observed(recorder, observed, plan, mask, valid, buffer);
  // Before its time begins.
  begin_slots(recorder, buffer);
  const uint64_t start_ticks = now_ticks();
  time.begin_forward(buffer, plan.kind, start_ticks);
  push_step_begin(buffer, plan, start_ticks, step);
  sampled.push_detail(buffer, step);
  if (state != nullptr) close_gap(*state, buffer, start_ticks, step);
  const uint32_t outer_seq = buffer.open_seq;
  const uint32_t parent_seq = outer_seq != 0 ? outer_seq : enclosing(recorder).seq;
  const uint32_t seq = tls_thread_state->next_seq();
  const uint64_t pushed_before = buffer.pushed();
  buffer.open_seq = seq;
  buffer.open_step = step;
  PyObject* result = call_step_forward(call, args, kwargs, buffer, seq, step, plan.kind);
  const uint64_t end_ticks = now_ticks();
  time.end_forward(buffer, end_ticks);
  end_slots(recorder);
  sampled.settle(buffer, end_ticks - start_ticks, buffer.observed.ticks, buffer.unrecorded);
  close_observed(call, buffer, step, result);
  charge_observation(recorder, buffer, plan.kind, buffer.observed);
  if (reads_logits) end_logits(*logits, *state, result);
  buffer.open_seq = outer_seq;
  buffer.open_step = kNone32;
  buffer.open_detail = outer_detail;
  if (recorder.active()) {
    push_step_end(buffer, {call.base.site, seq, parent_seq, step, plan.kind, start_ticks, end_ticks,
                           pushed_before, result == nullptr, sampled.choices()});
  }
  if (reads_logits) charge_read_logits(*state, buffer);
  if (state != nullptr) {
    state->last_end_ticks = end_ticks;
    open_gap(*state, buffer, end_ticks);
  }
  return result;
}

}  // namespace pertoken::bindings
