// How the root's wrapper calls the forward of a step: as it is, inside a span, or between
// boundaries on the model's devices. Under the GIL, on the model's thread; hot.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/compiled_layers.h"
#include "bindings/root_call.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// Layers that are open in what was compiled: their ends were not told, or went unseen.
inline PyObject* close_cut_layers(Recorder& recorder, ThreadBuffer& buffer, PyObject* result) {
  if (result == nullptr || !recorder.active()) [[unlikely]]
    close_compiled_layers(recorder, buffer);
  return result;
}

inline PyObject* call_forward(const RootCall& call, PyObject* args, PyObject* kwargs,
                              ThreadBuffer& buffer) {
  return close_cut_layers(*call.base.recorder, buffer, call.base.inner.call(args, kwargs));
}

inline PyObject* timed_forward(const RootCall& call, PyObject* args, PyObject* kwargs,
                               ThreadBuffer& buffer, uint32_t parent, uint32_t step) {
  Recorder& recorder = *call.base.recorder;
  return close_cut_layers(
      recorder, buffer,
      timed_call(call.base.inner, args, kwargs, recorder, buffer, call.base.site, parent, step));
}

// Apart, so that a step without a device pays for no room for its intervals. What these take is the
// root's, though within the step: it is added to `root_ticks`.
PyObject* call_step_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                               ThreadBuffer& buffer, uint32_t seq, uint32_t step,
                               uint64_t& root_ticks);
inline PyObject* call_step_forward(RootCall& call, PyObject* args, PyObject* kwargs,
                                   ThreadBuffer& buffer, uint32_t seq, uint32_t step,
                                   StepKind kind) {
  if (call.base.recorder->device_calls() == nullptr)
    return call_forward(call, args, kwargs, buffer);
  return call_step_on_devices(call, args, kwargs, buffer, seq, step,
                              buffer.root_ticks[static_cast<size_t>(kind)]);
}

// In a step that the user declared, which has its own time on the device.
PyObject* call_timed_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                                ThreadBuffer& buffer, uint32_t parent, uint32_t step,
                                uint64_t& root_ticks);

}  // namespace pertoken::bindings
