// A step as the root's wrapper takes it in general: whatever kind it is of, in a generate(), in a
// step that the user declared or by hand, with whatever detail. Under the GIL, on the model's
// thread. The decode steps without detail, which are most, have a shorter way: plain_decode.h.
#pragma once

#include <Python.h>

#include "bindings/generation_state.h"
#include "bindings/root_call.h"
#include "bindings/root_time.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// `state` is that of the generate() it runs in, or null.
PyObject* call_step(RootCall& call, GenerationState* state, PyObject* args, PyObject* kwargs,
                    ThreadBuffer& buffer, RootTime& time);

}  // namespace pertoken::bindings
