// What stands in the class attribute nn.Module._compiled_call_impl while models are searched for:
// nn.Module.__call__ reads it of every module that has nothing in its own call slot. Inside a call
// of a root it reads as None, as ever. Outside any, it reads as a method that asks `consider`
// whether the module is a model to record, and then calls it. Under the GIL, on any thread.
//
// It has no __set__: what a module holds itself in its slot goes before it. What module.compile()
// puts there is called through a RootProbe, which asks the same.
#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "bindings/span_call.h"

namespace pertoken::bindings {

thread_local constinit uint32_t tls_open_roots = 0;

namespace {

struct RootSearch {
  PyObject_HEAD
  PyObject* consider;  // (module) -> what to call instead of the module's own _call_impl, or None
  PyObject* decided;   // a dict whose keys are the ids of modules that need not be asked about
};

struct RootProbe {
  PyObject_HEAD
  PyObject* inner;     // what stood in the slot
  PyObject* consider;  // () -> what to call instead of `inner`, or None
  PyObject* weakrefs;
};

// What `consider` wants called, or nullptr; false with an exception set, which is no fault of ours.
bool ask(PyObject* consider, PyObject* module, PyObject*& wrapper) {
  ++tls_open_roots;
  wrapper = PyObject_CallFunctionObjArgs(consider, module, nullptr);
  --tls_open_roots;
  if (wrapper == nullptr) return swallow_fault(consider);
  if (wrapper == Py_None) Py_CLEAR(wrapper);
  return true;
}

bool is_decided(const RootSearch& search, PyObject* module) {
  PyObject* id = PyLong_FromVoidPtr(module);
  const int found = id == nullptr ? -1 : PyDict_Contains(search.decided, id);
  Py_XDECREF(id);
  if (found < 0) PyErr_Clear();
  return found != 0;
}

PyObject* call_outermost(PyObject* call, PyObject* args, PyObject* kwargs) {
  ++tls_open_roots;
  PyObject* result = PyObject_Call(call, args, kwargs);
  --tls_open_roots;
  return result;
}

// Called as a method: the module comes first.
PyObject* search_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  const auto& search = *reinterpret_cast<RootSearch*>(self);
  if (PyTuple_GET_SIZE(args) == 0) {
    PyErr_SetString(PyExc_TypeError, "a call slot belongs to a module");
    return nullptr;
  }
  PyObject* module = PyTuple_GET_ITEM(args, 0);
  PyObject* wrapper = nullptr;
  const bool asks = tls_open_roots == 0 && !is_decided(search, module);
  if (asks && !ask(search.consider, module, wrapper)) return nullptr;
  PyObject* own_args = PyTuple_GetSlice(args, 1, PyTuple_GET_SIZE(args));
  PyObject* result = nullptr;
  if (own_args != nullptr && wrapper != nullptr) {
    result = PyObject_Call(wrapper, own_args, kwargs);
  } else if (own_args != nullptr) {
    PyObject* call = PyObject_GetAttrString(module, "_call_impl");
    if (call != nullptr) result = call_outermost(call, own_args, kwargs);
    Py_XDECREF(call);
  }
  Py_XDECREF(own_args);
  Py_XDECREF(wrapper);
  return result;
}

PyObject* search_get(PyObject* self, PyObject* instance, PyObject*) {
  if (instance == nullptr || instance == Py_None || tls_open_roots != 0) return Py_NewRef(Py_None);
  return PyMethod_New(self, instance);
}

int init(PyObject* self, PyObject* args, PyObject*) {
  auto* search = reinterpret_cast<RootSearch*>(self);
  if (!PyArg_ParseTuple(args, "OO!:RootSearch", &search->consider, &PyDict_Type,
                        &search->decided)) {
    return -1;
  }
  Py_INCREF(search->consider);
  Py_INCREF(search->decided);
  return 0;
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  auto* search = reinterpret_cast<RootSearch*>(self);
  Py_VISIT(search->consider);
  Py_VISIT(search->decided);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto* search = reinterpret_cast<RootSearch*>(self);
  Py_CLEAR(search->consider);
  Py_CLEAR(search->decided);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* probe_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  const auto& probe = *reinterpret_cast<RootProbe*>(self);
  PyObject* wrapper = nullptr;
  if (tls_open_roots == 0 && !ask(probe.consider, nullptr, wrapper)) return nullptr;
  PyObject* call = wrapper != nullptr ? wrapper : Py_XNewRef(probe.inner);
  if (call == nullptr) {
    PyErr_SetString(PyExc_ReferenceError, "the wrapped callable is gone");
    return nullptr;
  }
  PyObject* result =
      wrapper != nullptr ? PyObject_Call(call, args, kwargs) : call_outermost(call, args, kwargs);
  Py_DECREF(call);
  return result;
}

int probe_init(PyObject* self, PyObject* args, PyObject*) {
  auto* probe = reinterpret_cast<RootProbe*>(self);
  if (!PyArg_ParseTuple(args, "OO:RootProbe", &probe->inner, &probe->consider)) return -1;
  Py_INCREF(probe->inner);
  Py_INCREF(probe->consider);
  return 0;
}

int probe_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* probe = reinterpret_cast<RootProbe*>(self);
  Py_VISIT(probe->inner);
  Py_VISIT(probe->consider);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

int probe_clear(PyObject* self) {
  auto* probe = reinterpret_cast<RootProbe*>(self);
  Py_CLEAR(probe->inner);
  Py_CLEAR(probe->consider);
  return 0;
}

void probe_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  if (reinterpret_cast<RootProbe*>(self)->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  probe_clear(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef probe_members[] = {
    {"inner", T_OBJECT, offsetof(RootProbe, inner), 0, nullptr},
    {"__wrapped__", T_OBJECT, offsetof(RootProbe, inner), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RootProbe, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot probe_slots[] = {{Py_tp_init, reinterpret_cast<void*>(probe_init)},
                             {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(probe_dealloc)},
                             {Py_tp_traverse, reinterpret_cast<void*>(probe_traverse)},
                             {Py_tp_clear, reinterpret_cast<void*>(probe_clear)},
                             {Py_tp_call, reinterpret_cast<void*>(probe_call)},
                             {Py_tp_members, probe_members},
                             {0, nullptr}};
PyType_Spec probe_spec = {"pertoken._native.RootProbe", sizeof(RootProbe), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, probe_slots};

PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                       {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                       {Py_tp_call, reinterpret_cast<void*>(search_call)},
                       {Py_tp_descr_get, reinterpret_cast<void*>(search_get)},
                       {0, nullptr}};
PyType_Spec spec = {"pertoken._native.RootSearch", sizeof(RootSearch), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

bool add_root_search_types(PyObject* module) {
  PyObject* search = PyType_FromSpec(&spec);
  if (search == nullptr || PyModule_AddObject(module, "RootSearch", search) < 0) return false;
  PyObject* probe = PyType_FromSpec(&probe_spec);
  return probe != nullptr && PyModule_AddObject(module, "RootProbe", probe) == 0;
}

}  // namespace pertoken::bindings
