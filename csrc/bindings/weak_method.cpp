#include "bindings/weak_method.h"

#include <structmember.h>

#include "bindings/bound_call.h"
#include "bindings/span_call.h"

namespace pertoken::bindings {

PyTypeObject* weak_method_type = nullptr;

namespace {

PyObject* weak_method_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  return call_weak_method(*reinterpret_cast<WeakMethod*>(self), args, kwargs);
}

int weak_method_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* function = nullptr;
  PyObject* instance = nullptr;
  if (!PyArg_ParseTuple(args, "OO:WeakMethod", &function, &instance)) return -1;
  PyObject* ref = PyWeakref_NewRef(instance, nullptr);
  if (ref == nullptr) return -1;
  auto& method = *reinterpret_cast<WeakMethod*>(self);
  method.function = Py_NewRef(function);
  method.ref = ref;
  return 0;
}

int weak_method_traverse(PyObject* self, visitproc visit, void* arg) {
  auto& method = *reinterpret_cast<WeakMethod*>(self);
  Py_VISIT(method.function);
  Py_VISIT(method.ref);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

void weak_method_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto& method = *reinterpret_cast<WeakMethod*>(self);
  Py_CLEAR(method.function);
  Py_CLEAR(method.ref);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot weak_method_slots[] = {{Py_tp_init, reinterpret_cast<void*>(weak_method_init)},
                                   {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                                   {Py_tp_dealloc, reinterpret_cast<void*>(weak_method_dealloc)},
                                   {Py_tp_traverse, reinterpret_cast<void*>(weak_method_traverse)},
                                   {Py_tp_call, reinterpret_cast<void*>(weak_method_call)},
                                   {0, nullptr}};
PyType_Spec weak_method_spec = {"pertoken._native.WeakMethod", sizeof(WeakMethod), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, weak_method_slots};

}  // namespace

PyObject* call_weak_method(const WeakMethod& method, PyObject* args, PyObject* kwargs) {
  PyObject* instance = referent(method.ref);
  if (instance == nullptr) {
    PyErr_SetString(PyExc_ReferenceError, "the object of this method is gone");
    return nullptr;
  }
  PyObject* result = call_bound(method.function, instance, args, kwargs);
  Py_DECREF(instance);
  return result;
}

bool add_weak_method_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&weak_method_spec);
  weak_method_type = reinterpret_cast<PyTypeObject*>(type);
  return type != nullptr && PyModule_AddObject(module, "WeakMethod", Py_NewRef(type)) == 0;
}

}  // namespace pertoken::bindings
