// A method bound to an object that it does not hold. A wrapper in a module calls it instead of the
// bound method, which would make a cycle: a module that its program drops would then stay, with all
// its memory, until the garbage collector comes by. Under the GIL; part of a wrapped call.
#include <Python.h>
#include <structmember.h>

#include <cstddef>

#include "bindings/span_call.h"

namespace pertoken::bindings {

namespace {

struct WeakMethod {
  PyObject_HEAD
  PyObject* function;
  PyObject* ref;  // a weak reference to the object
};

PyObject* weak_method_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  const auto& method = *reinterpret_cast<WeakMethod*>(self);
  PyObject* instance = PyObject_CallNoArgs(method.ref);
  if (instance == nullptr) return nullptr;
  if (instance == Py_None) {
    Py_DECREF(instance);
    PyErr_SetString(PyExc_ReferenceError, "the object of this method is gone");
    return nullptr;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(args);
  PyObject* all_args = PyTuple_New(count + 1);
  if (all_args == nullptr) {
    Py_DECREF(instance);
    return nullptr;
  }
  PyTuple_SET_ITEM(all_args, 0, instance);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(all_args, i + 1, Py_NewRef(PyTuple_GET_ITEM(args, i)));
  }
  PyObject* result = PyObject_Call(method.function, all_args, kwargs);
  Py_DECREF(all_args);
  return result;
}

int init(PyObject* self, PyObject* args, PyObject*) {
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

int traverse(PyObject* self, visitproc visit, void* arg) {
  auto& method = *reinterpret_cast<WeakMethod*>(self);
  Py_VISIT(method.function);
  Py_VISIT(method.ref);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto& method = *reinterpret_cast<WeakMethod*>(self);
  Py_CLEAR(method.function);
  Py_CLEAR(method.ref);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                       {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                       {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                       {Py_tp_call, reinterpret_cast<void*>(weak_method_call)},
                       {0, nullptr}};
PyType_Spec spec = {"pertoken._native.WeakMethod", sizeof(WeakMethod), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

bool add_weak_method_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&spec);
  return type != nullptr && PyModule_AddObject(module, "WeakMethod", type) == 0;
}

}  // namespace pertoken::bindings
