#include "bindings/span_call.h"

#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "core/step_detail.h"

namespace pertoken::bindings {

PyObject* span_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto* call = reinterpret_cast<SpanCall*>(self);
  Recorder& recorder = *call->recorder;
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  if (buffer == nullptr) return call_inner(call->inner, args, kwargs);
  if ((buffer->open_detail & call->left_out) != 0) return call_inner(call->inner, args, kwargs);
  if (buffer->open_seq != 0) [[likely]] {
    return timed_call(call->inner, args, kwargs, recorder, *buffer, call->site, buffer->open_seq,
                      buffer->open_step);
  }
  const Enclosing outer = enclosing(recorder);
  return timed_call(call->inner, args, kwargs, recorder, *buffer, call->site, outer.seq,
                    outer.step);
}

int span_call_init(SpanCall* self, PyObject* inner, PyObject* recorder, unsigned int site,
                   unsigned int span_detail) {
  self->recorder = recorder_of(recorder);
  if (self->recorder == nullptr) return -1;
  if (!PyCallable_Check(inner)) {
    PyErr_SetString(PyExc_TypeError, "inner must be callable");
    return -1;
  }
  self->inner = Py_NewRef(inner);
  self->owner = Py_NewRef(recorder);
  self->site = site;
  self->left_out = left_out(span_detail);
  return 0;
}

int span_call_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* call = reinterpret_cast<SpanCall*>(self);
  Py_VISIT(call->inner);
  Py_VISIT(call->owner);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

// `owner` stays until the end: it keeps the recorder that a call may still use.
int span_call_clear(PyObject* self) {
  Py_CLEAR(reinterpret_cast<SpanCall*>(self)->inner);
  return 0;
}

PyObject* span_call_reduce(PyObject*, PyObject*) {
  return Py_BuildValue("(O())", reinterpret_cast<PyObject*>(Py_TYPE(Py_None)));
}

namespace {

int init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  unsigned int site = 0;
  unsigned int span_detail = kDetailLayers;
  if (!PyArg_ParseTuple(args, "OOI|I:SpanCall", &inner, &recorder, &site, &span_detail)) return -1;
  return span_call_init(reinterpret_cast<SpanCall*>(self), inner, recorder, site, span_detail);
}

void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto* call = reinterpret_cast<SpanCall*>(self);
  if (call->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  Py_CLEAR(call->inner);
  Py_CLEAR(call->owner);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef members[] = {
    {"inner", T_OBJECT, offsetof(SpanCall, inner), 0, nullptr},
    {"__wrapped__", T_OBJECT, offsetof(SpanCall, inner), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(SpanCall, weakrefs), READONLY, nullptr},
    {"site", T_UINT, offsetof(SpanCall, site), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMethodDef methods[] = {{"__reduce_ex__", span_call_reduce, METH_O, nullptr},
                         {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                       {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(span_call_traverse)},
                       {Py_tp_clear, reinterpret_cast<void*>(span_call_clear)},
                       {Py_tp_call, reinterpret_cast<void*>(span_call)},
                       {Py_tp_members, members},
                       {Py_tp_methods, methods},
                       {0, nullptr}};
PyType_Spec spec = {"pertoken._native.SpanCall", sizeof(SpanCall), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

bool add_span_call_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&spec);
  return type != nullptr && PyModule_AddObject(module, "SpanCall", type) == 0;
}

}  // namespace pertoken::bindings
