// A wrapper round a method that a class or an instance holds: calls `before`, the method itself,
// and `after`, which both are ours. The user sees the method's own result, exception and
// traceback; no frame of ours is in it. Cold: once a generate() or a compile().
#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "bindings/span_call.h"

namespace pertoken::bindings {

// A fault of ours must not reach the user; an interrupt that hit while our code ran must.
bool swallow_fault(PyObject* source) {
  if (!PyErr_ExceptionMatches(PyExc_Exception)) return false;
  PyErr_WriteUnraisable(source);
  return true;
}

PyObject* bind_method(PyObject* self, PyObject* instance, PyObject*) {
  if (instance == nullptr || instance == Py_None) return Py_NewRef(self);
  return PyMethod_New(self, instance);
}

namespace {

struct MethodCall {
  PyObject_HEAD
  PyObject* inner;
  PyObject* before;  // (args, kwargs) -> token, None: after is not called
  PyObject* after;   // (token, result or None, exception type or None)
  PyObject* weakrefs;
};

PyObject* method_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto* call = reinterpret_cast<MethodCall*>(self);
  PyObject* none_or_kwargs = kwargs == nullptr ? Py_None : kwargs;
  PyObject* token = PyObject_CallFunctionObjArgs(call->before, args, none_or_kwargs, nullptr);
  if (token == nullptr) {
    if (!swallow_fault(call->before)) return nullptr;
    return call_inner(call->inner, args, kwargs);
  }
  if (token == Py_None) {
    Py_DECREF(token);
    return call_inner(call->inner, args, kwargs);
  }
  PyObject* result = call_inner(call->inner, args, kwargs);
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyObject* done =
      PyObject_CallFunctionObjArgs(call->after, token, result == nullptr ? Py_None : result,
                                   type == nullptr ? Py_None : type, nullptr);
  Py_DECREF(token);
  if (done == nullptr && !swallow_fault(call->after)) {
    Py_XDECREF(result);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return nullptr;
  }
  Py_XDECREF(done);
  PyErr_Restore(type, value, traceback);
  return result;
}

// Name, docstring, signature and whatever else a method is asked for are those of the inner one.
PyObject* get_attribute(PyObject* self, PyObject* name) {
  PyObject* value = PyObject_GenericGetAttr(self, name);
  if (value != nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError)) return value;
  PyErr_Clear();
  return PyObject_GetAttr(reinterpret_cast<MethodCall*>(self)->inner, name);
}

int method_call_init(PyObject* self, PyObject* args, PyObject*) {
  auto* call = reinterpret_cast<MethodCall*>(self);
  if (!PyArg_ParseTuple(args, "OOO:MethodCall", &call->inner, &call->before, &call->after)) {
    return -1;
  }
  Py_INCREF(call->inner);
  Py_INCREF(call->before);
  Py_INCREF(call->after);
  return 0;
}

int method_call_traverse(PyObject* self, visitproc visit, void* arg) {
  auto* call = reinterpret_cast<MethodCall*>(self);
  Py_VISIT(call->inner);
  Py_VISIT(call->before);
  Py_VISIT(call->after);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

int clear(PyObject* self) {
  auto* call = reinterpret_cast<MethodCall*>(self);
  Py_CLEAR(call->inner);
  Py_CLEAR(call->before);
  Py_CLEAR(call->after);
  return 0;
}

void method_call_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  if (reinterpret_cast<MethodCall*>(self)->weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  clear(self);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef method_call_members[] = {
    {"inner", T_OBJECT, offsetof(MethodCall, inner), 0, nullptr},
    {"__wrapped__", T_OBJECT, offsetof(MethodCall, inner), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(MethodCall, weakrefs), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot method_call_slots[] = {{Py_tp_init, reinterpret_cast<void*>(method_call_init)},
                                   {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                                   {Py_tp_dealloc, reinterpret_cast<void*>(method_call_dealloc)},
                                   {Py_tp_traverse, reinterpret_cast<void*>(method_call_traverse)},
                                   {Py_tp_clear, reinterpret_cast<void*>(clear)},
                                   {Py_tp_call, reinterpret_cast<void*>(method_call)},
                                   {Py_tp_getattro, reinterpret_cast<void*>(get_attribute)},
                                   {Py_tp_descr_get, reinterpret_cast<void*>(bind_method)},
                                   {Py_tp_members, method_call_members},
                                   {0, nullptr}};
PyType_Spec method_call_spec = {"pertoken._native.MethodCall", sizeof(MethodCall), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
                                method_call_slots};

}  // namespace

bool add_method_call_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&method_call_spec);
  return type != nullptr && PyModule_AddObject(module, "MethodCall", type) == 0;
}

}  // namespace pertoken::bindings
