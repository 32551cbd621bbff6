// The way through the root's wrapper that nearly all steps take under a budget: decode steps of
// which it was decided ahead that they get no detail. Beside a model's work what a step costs is
// the lines of memory and of code that it touches, each of which is a wait. So this way is short,
// and looks only at what such a step can differ by; what is anything else goes through call_step()
// of step_call.cpp, which writes the same records. Under the GIL, on the model's thread; hot.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/generation_state.h"
#include "bindings/root_call.h"
#include "bindings/root_time.h"
#include "bindings/step_plan.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// Whether the coming forward is such a step, and what it is told by. `state` is that of the
// generate() it runs in, or null.
bool plan_plain_decode(RootCall& call, const GenerationState* state, const ThreadBuffer& buffer,
                       PyObject* args, PyObject* kwargs, StepPlan& plan);

PyObject* call_plain_decode(RootCall& call, GenerationState* state, const StepPlan& plan,
                            PyObject* args, PyObject* kwargs, ThreadBuffer& buffer, RootTime& time);

}  // namespace pertoken::bindings
