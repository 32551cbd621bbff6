// The callables that stand in a module's call slot. SpanCall times one call and passes everything
// through; RootCall does so for the root and describes the step as well. All under the GIL, on the
// model's threads: this is the hot path.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/inner_callable.h"
#include "bindings/observer.h"
#include "bindings/scope.h"
#include "core/recorder.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

// What a call reads stands at the front: beside a model's work each call finds its wrapper outside
// the processor's near caches.
struct SpanCall {
  PyObject_HEAD
  InnerCallable inner;  // what stood in the slot, or the module's own _call_impl
  Recorder* recorder;
  Observer* observer;
  uint32_t site;
  uint32_t left_out;  // a bit of ThreadBuffer::open_detail: steps that have no spans of this sort
  PyObject* owner;    // the Python object that keeps the recorder alive
  PyObject* observer_owner;  // the same for the observer; null where the site is not observed
  PyObject* weakrefs;        // for Python only: what has put the wrapper somewhere does not hold it
  bool may_step_aside;       // see call_slots.h, which has also the next two
  bool is_known;
  bool is_aside;
};

// How many calls of roots the calling thread is in: recorded ones, and, while roots are searched
// for, the outermost call of any module. Initial-exec as tls_thread_state is.
extern thread_local constinit uint32_t tls_open_roots PERTOKEN_TLS_MODEL;

// Calls `inner` inside a span of `site`. `step` is what the span and those inside it belong to.
[[gnu::always_inline]] inline PyObject* timed_call(const InnerCallable& inner, PyObject* args,
                                                   PyObject* kwargs, const Recorder& recorder,
                                                   ThreadBuffer& buffer, uint32_t site,
                                                   uint32_t parent_seq, uint32_t step) {
  const uint32_t outer_seq = buffer.open_seq;
  const uint32_t outer_step = buffer.open_step;
  const uint32_t seq = tls_thread_state->next_seq();
  buffer.open_seq = seq;
  buffer.open_step = step;
  const uint64_t start_ticks = now_ticks();
  PyObject* result = inner.call(args, kwargs);
  const uint64_t end_ticks = now_ticks();
  buffer.open_seq = outer_seq;
  buffer.open_step = outer_step;
  if (recorder.active()) [[likely]] {
    buffer.push({start_ticks, end_ticks, make_tag(RecordType::kSpan, site), seq, parent_seq, step});
  }
  return result;
}

// Where the site is observed and so is the step, has what the call gave counted. After the end of
// its span, in the time of the one round it.
inline void observe_result(const SpanCall& call, ThreadBuffer& buffer, PyObject* result) {
  if (call.observer == nullptr) [[likely]]
    return;
  if ((buffer.open_detail & kDetailActivations) == 0 || result == nullptr) return;
  call.observer->observe_output(buffer, call.site, result);
}

PyObject* span_call(PyObject* self, PyObject* args, PyObject* kwargs);

// The recorder that a Python object of type Recorder holds; nullptr with TypeError set if it is
// not one.
Recorder* recorder_of(PyObject* object);

// Each adds its type to the module; false with an exception set.
bool add_span_call_type(PyObject* module);
bool add_root_call_type(PyObject* module);
bool add_generation_types(PyObject* module);
bool add_method_call_type(PyObject* module);
bool add_root_search_types(PyObject* module);
bool add_weak_method_type(PyObject* module);

// A fault of ours is written to stderr and forgotten; false for an interrupt, which stays set.
bool swallow_fault(PyObject* source);
// As __get__ of a function: a wrapper that stands in a class is a method of its instances.
PyObject* bind_method(PyObject* self, PyObject* instance, PyObject* type);

// Shared by the two types, which begin with the same members.
int span_call_init(SpanCall* self, PyObject* inner, PyObject* recorder, unsigned int site,
                   unsigned int span_detail, PyObject* observer);
int span_call_traverse(PyObject* self, visitproc visit, void* arg);
int span_call_clear(PyObject* self);
void span_call_release(SpanCall* self);
// Its attributes `inner`, which can be set, and `__wrapped__`.
extern PyGetSetDef span_call_attributes[];
// As __reduce_ex__: copies and pickles of a wrapper are None, which an empty call slot holds.
PyObject* span_call_reduce(PyObject* self, PyObject* protocol);

}  // namespace pertoken::bindings
