#include "bindings/span_call.h"

#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "bindings/call_slots.h"
#include "core/step_detail.h"

namespace pertoken::bindings {

namespace {

// In a step that was sampled without this sort of spans.
[[gnu::noinline]] PyObject* call_unrecorded(SpanCall& call, ThreadBuffer& buffer, PyObject* args,
                                            PyObject* kwargs) {
  ++buffer.unrecorded.passed_on;
  if (call.may_step_aside) call.recorder->call_slots()->step_aside(call, buffer);
  PyObject* result = call.inner.call(args, kwargs);
  observe_result(call, buffer, result);
  return result;
}

// Apart, so that a call that is only passed on pays for no room for a record.
[[gnu::noinline]] PyObject* call_recorded(SpanCall& call, ThreadBuffer& buffer, PyObject* args,
                                          PyObject* kwargs) {
  Recorder& recorder = *call.recorder;
  // Its calls outside steps are to be seen, too.
  if (buffer.open_step == kNone32) [[unlikely]]
    call.may_step_aside = false;
  if (buffer.open_seq == 0) [[unlikely]] {
    const Enclosing outer = enclosing(recorder);
    return timed_call(call.inner, args, kwargs, recorder, buffer, call.site, outer.seq, outer.step);
  }
  PyObject* result = timed_call(call.inner, args, kwargs, recorder, buffer, call.site,
                                buffer.open_seq, buffer.open_step);
  observe_result(call, buffer, result);
  return result;
}

}  // namespace

PyObject* span_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto& call = *reinterpret_cast<SpanCall*>(self);
  ThreadBuffer* buffer = call.recorder->active() ? call.recorder->buffer() : nullptr;
  if (buffer == nullptr) return call.inner.call(args, kwargs);
  if ((buffer->open_detail & call.left_out) == 0) {
    return call_recorded(call, *buffer, args, kwargs);
  }
  return call_unrecorded(call, *buffer, args, kwargs);
}

int span_call_init(SpanCall* self, PyObject* inner, PyObject* recorder, unsigned int site,
                   unsigned int span_detail, PyObject* observer) {
  self->recorder = recorder_of(recorder);
  if (self->recorder == nullptr) return -1;
  if (!PyCallable_Check(inner)) {
    PyErr_SetString(PyExc_TypeError, "inner must be callable");
    return -1;
  }
  if (observer != nullptr && observer != Py_None) {
    self->observer = observer_of(observer);
    if (self->observer == nullptr) return -1;
    self->observer_owner = Py_NewRef(observer);
  }
  self->inner.set(inner);
  self->owner = Py_NewRef(recorder);
  self->site = site;
  self->left_out = left_out(span_detail);
  return 0;
}

int span_call_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* call = reinterpret_cast<SpanCall*>(self);
  Py_VISIT(call->inner.callable);
  Py_VISIT(call->owner);
  Py_VISIT(call->observer_owner);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

// The owners stay until the end: they keep the recorder and the observer that a call may still use.
int span_call_clear(PyObject* self) {
  reinterpret_cast<SpanCall*>(self)->inner.set(nullptr);
  return 0;
}

void span_call_release(SpanCall* self) {
  self->inner.set(nullptr);
  Py_CLEAR(self->owner);
  Py_CLEAR(self->observer_owner);
}

PyObject* span_call_reduce(PyObject*, PyObject*) {
  return Py_BuildValue("(O())", reinterpret_cast<PyObject*>(Py_TYPE(Py_None)));
}

namespace {

PyObject* get_inner(PyObject* self, void*) {
  PyObject* callable = reinterpret_cast<SpanCall*>(self)->inner.callable;
  return Py_NewRef(callable == nullptr ? Py_None : callable);
}

int set_inner(PyObject* self, PyObject* value, void*) {
  if (value == nullptr || !PyCallable_Check(value)) {
    PyErr_SetString(PyExc_TypeError, "inner must be callable");
    return -1;
  }
  auto& call = *reinterpret_cast<SpanCall*>(self);
  call.inner.set(value);
  call.may_step_aside = false;  // somebody stands between it and the module, or did
  return 0;
}

}  // namespace

PyGetSetDef span_call_attributes[] = {{"inner", get_inner, set_inner, nullptr, nullptr},
                                      {"__wrapped__", get_inner, nullptr, nullptr, nullptr},
                                      {nullptr, nullptr, nullptr, nullptr, nullptr}};

namespace {

int span_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  PyObject* observer = nullptr;
  unsigned int site = 0;
  unsigned int span_detail = kDetailLayers;
  if (!PyArg_ParseTuple(args, "OOI|IO:SpanCall", &inner, &recorder, &site, &span_detail,
                        &observer)) {
    return -1;
  }
  return span_call_init(reinterpret_cast<SpanCall*>(self), inner, recorder, site, span_detail,
                        observer);
}

void span_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto* call = reinterpret_cast<SpanCall*>(self);
  if (call->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  span_call_release(call);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef span_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SpanCall, weakrefs), READONLY, nullptr},
    {"site", T_UINT, offsetof(SpanCall, site), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMethodDef span_methods[] = {{"__reduce_ex__", span_call_reduce, METH_O, nullptr},
                              {nullptr, nullptr, 0, nullptr}};

PyType_Slot span_slots[] = {{Py_tp_init, reinterpret_cast<void*>(span_init)},
                            {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(span_dealloc)},
                            {Py_tp_traverse, reinterpret_cast<void*>(span_call_traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(span_call_clear)},
                            {Py_tp_call, reinterpret_cast<void*>(span_call)},
                            {Py_tp_members, span_members},
                            {Py_tp_getset, span_call_attributes},
                            {Py_tp_methods, span_methods},
                            {0, nullptr}};
PyType_Spec span_spec = {"pertoken._native.SpanCall", sizeof(SpanCall), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, span_slots};

}  // namespace

bool add_span_call_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&span_spec);
  return type != nullptr && PyModule_AddObject(module, "SpanCall", type) == 0;
}

}  // namespace pertoken::bindings
