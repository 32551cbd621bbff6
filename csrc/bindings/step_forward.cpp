#include "bindings/step_forward.h"

#include "bindings/device_calls.h"

namespace pertoken::bindings {

namespace {

template <typename Forward>
PyObject* between_boundaries(const RootCall& call, ThreadBuffer& buffer, uint64_t& root_ticks,
                             const cuda::SpanLabels& labels, Forward&& forward) {
  const uint64_t begun_ticks = now_ticks();
  DeviceIntervals devices(*call.base.recorder, buffer, labels.seq);
  root_ticks += now_ticks() - begun_ticks;
  PyObject* result = forward();
  const uint64_t ended_ticks = now_ticks();
  devices.end(labels);
  root_ticks += now_ticks() - ended_ticks;
  return result;
}

}  // namespace

PyObject* call_step_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                               ThreadBuffer& buffer, uint32_t seq, uint32_t step,
                               uint64_t& root_ticks) {
  return between_boundaries(call, buffer, root_ticks, {call.base.site, seq, 0, step, true},
                            [&] { return call_forward(call, args, kwargs, buffer); });
}

PyObject* call_timed_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                                ThreadBuffer& buffer, uint32_t parent, uint32_t step,
                                uint64_t& root_ticks) {
  const uint32_t seq = tls_thread_state->coming_seq();
  return between_boundaries(call, buffer, root_ticks, {call.base.site, seq, 0, step, false}, [&] {
    return timed_forward(call, args, kwargs, buffer, parent, step);
  });
}

}  // namespace pertoken::bindings
