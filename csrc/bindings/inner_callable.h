// What a wrapper in a call slot stands for, taken apart so that a call needs no other object's
// memory than the wrapper's own: beside a model's work each is outside the near caches.
#pragma once

#include <Python.h>

#include "bindings/bound_call.h"
#include "bindings/weak_method.h"

namespace pertoken::bindings {

// Calls any callable, which may be replaced while it runs: another recording starts or stops.
inline PyObject* call_inner(PyObject* inner, PyObject* args, PyObject* kwargs) {
  if (inner == nullptr) [[unlikely]] {  // the collector has cleared the wrapper
    PyErr_SetString(PyExc_ReferenceError, "the wrapped callable is gone");
    return nullptr;
  }
  if (Py_IS_TYPE(inner, weak_method_type)) {
    return call_weak_method(*reinterpret_cast<WeakMethod*>(inner), args, kwargs);
  }
  Py_INCREF(inner);
  PyObject* result = PyObject_Call(inner, args, kwargs);
  Py_DECREF(inner);
  return result;
}

struct InnerCallable {
  PyObject* function;  // of the method, where it is a bound one; borrowed from it, as is the next
  PyObject* instance;
  PyObject* callable;  // null before it is set, and once the collector has cleared it

  // Takes a new reference to `value`, which may be null.
  void set(PyObject* value) {
    PyObject* before = callable;
    const bool is_method = value != nullptr && PyMethod_Check(value);
    function = is_method ? PyMethod_GET_FUNCTION(value) : nullptr;
    instance = is_method ? PyMethod_GET_SELF(value) : nullptr;
    callable = Py_XNewRef(value);
    Py_XDECREF(before);
  }

  PyObject* call(PyObject* args, PyObject* kwargs) const {
    if (function == nullptr) return call_inner(callable, args, kwargs);
    PyObject* const held = Py_NewRef(instance);
    PyObject* result = call_bound(function, held, args, kwargs);
    Py_DECREF(held);
    return result;
  }
};

}  // namespace pertoken::bindings
