// The root's wrapper: times the forward as a span and describes it as a step. Under the GIL, on
// the model's thread, once a step. It may cost a microsecond; it may not raise, block or disturb.
#include "bindings/root_call.h"

#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "bindings/generation_state.h"
#include "bindings/plain_decode.h"
#include "bindings/root_time.h"
#include "bindings/span_call.h"
#include "bindings/step_call.h"
#include "bindings/step_plan.h"

namespace pertoken::bindings {

namespace {

// A root inside a root's forward, by recursion or as the model in a wrapper: the outermost is the
// step.
[[gnu::noinline]] PyObject* call_nested(RootCall& call, PyObject* args, PyObject* kwargs) {
  if (!call.is_span_when_nested) return call.base.inner.call(args, kwargs);
  return span_call(reinterpret_cast<PyObject*>(&call), args, kwargs);
}

PyObject* root_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  const uint64_t entered_ticks = now_ticks();
  auto& call = *reinterpret_cast<RootCall*>(self);
  Recorder& recorder = *call.base.recorder;
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  if (buffer == nullptr) return call.base.inner.call(args, kwargs);
  if (buffer->open_step != kNone32) return call_nested(call, args, kwargs);

  PyObject* value = nullptr;
  if (generation_states != 0 && PyContextVar_Get(call.generation_var, nullptr, &value) < 0) {
    PyErr_Clear();
  }
  GenerationState* state = nullptr;
  if (value != nullptr && Py_IS_TYPE(value, generation_state_type)) {
    state = reinterpret_cast<GenerationState*>(value);
  }
  const bool is_step =
      state == nullptr || call.only_generate_of == 0 || call.only_generate_of == state->model;
  ++tls_open_roots;
  PyObject* result = nullptr;
  if (is_step) {
    RootTime time(*buffer, entered_ticks);
    StepPlan plan;
    result = plan_plain_decode(call, state, *buffer, args, kwargs, plan)
                 ? call_plain_decode(call, state, plan, args, kwargs, *buffer, time)
                 : call_step(call, state, args, kwargs, *buffer, time);
    Py_XDECREF(value);
    time.end(*buffer);
  } else {
    result = call_nested(call, args, kwargs);
    Py_XDECREF(value);
  }
  --tls_open_roots;
  return result;
}

int root_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  PyObject* generation_var = nullptr;
  PyObject* places = nullptr;  // a list of (role, keyword, position)
  unsigned int site = 0;
  int takes_first_positional = 0;
  int is_span_when_nested = 1;
  unsigned long long only_generate_of = 0;
  PyObject* observer = nullptr;
  unsigned int span_detail = kDetailLayers;
  if (!PyArg_ParseTuple(args, "OOIOO!ppK|IO:RootCall", &inner, &recorder, &site, &generation_var,
                        &PyList_Type, &places, &takes_first_positional, &is_span_when_nested,
                        &only_generate_of, &span_detail, &observer)) {
    return -1;
  }
  auto& call = *reinterpret_cast<RootCall*>(self);
  if (span_call_init(&call.base, inner, recorder, site, span_detail, observer) < 0) return -1;
  call.generation_var = Py_NewRef(generation_var);
  call.is_span_when_nested = is_span_when_nested != 0;
  call.only_generate_of = only_generate_of;
  call.signature.take_first_positional(takes_first_positional != 0);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(places); ++i) {
    int role = 0;
    int position = -1;
    PyObject* keyword = nullptr;
    if (!PyArg_ParseTuple(PyList_GET_ITEM(places, i), "iUi", &role, &keyword, &position)) {
      return -1;
    }
    if (role < 0 || role >= kArgumentRoles) {
      PyErr_SetString(PyExc_ValueError, "no such argument role");
      return -1;
    }
    if (!call.signature.add(static_cast<ArgumentRole>(role), keyword, position)) {
      PyErr_SetString(PyExc_ValueError, "too many places of arguments");
      return -1;
    }
  }
  return 0;
}

int root_traverse(PyObject* self, visitproc visit, void* arg) {
  auto& call = *reinterpret_cast<RootCall*>(self);
  Py_VISIT(call.generation_var);
  if (const int found = call.last_cache.traverse(visit, arg); found != 0) return found;
  return span_call_traverse(self, visit, arg);
}

int root_clear(PyObject* self) {
  reinterpret_cast<RootCall*>(self)->last_cache.clear();
  return span_call_clear(self);
}

void root_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto& call = *reinterpret_cast<RootCall*>(self);
  if (call.base.weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  span_call_release(&call.base);
  Py_CLEAR(call.generation_var);
  call.last_cache.clear();
  call.signature.clear();
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef root_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RootCall, base.weakrefs), READONLY, nullptr},
    {"site", T_UINT, offsetof(RootCall, base.site), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMethodDef root_methods[] = {{"__reduce_ex__", span_call_reduce, METH_O, nullptr},
                              {nullptr, nullptr, 0, nullptr}};

PyType_Slot root_slots[] = {{Py_tp_init, reinterpret_cast<void*>(root_init)},
                            {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(root_dealloc)},
                            {Py_tp_traverse, reinterpret_cast<void*>(root_traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(root_clear)},
                            {Py_tp_call, reinterpret_cast<void*>(root_call)},
                            {Py_tp_members, root_members},
                            {Py_tp_getset, span_call_attributes},
                            {Py_tp_methods, root_methods},
                            {0, nullptr}};
PyType_Spec root_spec = {"pertoken._native.RootCall", sizeof(RootCall), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, root_slots};

}  // namespace

bool add_root_call_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&root_spec);
  return type != nullptr && PyModule_AddObject(module, "RootCall", type) == 0;
}

}  // namespace pertoken::bindings
