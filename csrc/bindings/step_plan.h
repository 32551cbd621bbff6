// What a step is, told before its forward runs: by the shapes of its arguments, by its cache, and
// inside generate() by how far that is. Under the GIL, on the model's thread, once a step.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/generation_state.h"
#include "bindings/last_cache.h"
#include "bindings/step_inputs.h"
#include "core/recorder.h"

namespace pertoken::bindings {

struct StepPlan {
  StepKind kind = StepKind::kOther;
  int64_t rows = -1;
  int64_t query_len = -1;
  int64_t past = -1;
  int64_t keep = 0;
  PyObject* cache = nullptr;    // borrowed from the arguments
  bool is_new_cache = false;    // not that of the step before
  bool asks_for_cache = false;  // of the model, which makes one itself
  uint32_t generation = kNone32;
  uint32_t flags = 0;
};

// As records hold it; kNone32 for what is unknown.
inline uint32_t narrow(int64_t value) {
  return value < 0 || value >= static_cast<int64_t>(kNone32) ? kNone32
                                                             : static_cast<uint32_t>(value);
}

// `state` is that of the generate() it runs in, or null; `last_cache` is that of the last step
// outside any, and becomes that of this one. What fails is counted as a fault.
StepPlan plan_step(const ForwardSignature& signature, LastCache& last_cache, Recorder& recorder,
                   const GenerationState* state, PyObject* args, PyObject* kwargs);

// What the padding mask says of each row. Inside generate() only the prefill is asked: padding
// stays what it was.
void push_padding(StepPlan& plan, PyObject* mask, ThreadBuffer& buffer, uint32_t step);

// Before the forward: the arguments, and with them the cache, may go while it runs.
inline void note_step(GenerationState& state, const StepPlan& plan, bool keep_known,
                      uint32_t step) {
  ++state.steps;
  state.last_step = step;
  state.last_past = plan.past;
  state.last_query_len = plan.query_len;
  state.last_keep = plan.keep;
  state.last_kind = plan.kind;
  state.keep_known = keep_known;
  state.had_cache = state.had_cache || plan.cache != nullptr;
  if (state.last_cache != plan.cache) {
    PyObject* before = state.last_cache;
    state.last_cache = Py_XNewRef(plan.cache);
    Py_XDECREF(before);
  }
  const bool known = plan.past >= 0 && plan.query_len >= 0;
  state.past = known ? plan.past + plan.query_len : kPastUnknown;
}

}  // namespace pertoken::bindings
