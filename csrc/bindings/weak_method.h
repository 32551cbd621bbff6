// A method bound to an object that it does not hold. A wrapper in a module calls it instead of the
// bound method, which would make a cycle: a module that its program drops would then stay, with all
// its memory, until the garbage collector comes by. Under the GIL; part of a wrapped call.
#pragma once

#include <Python.h>

namespace pertoken::bindings {

struct WeakMethod {
  PyObject_HEAD
  PyObject* function;
  PyObject* ref;  // a weak reference to the object
};

extern PyTypeObject* weak_method_type;

// What a weak reference refers to, as a new reference; nullptr, without an exception, where it is
// gone.
inline PyObject* referent(PyObject* ref) noexcept {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* object = nullptr;
  if (PyWeakref_GetRef(ref, &object) < 0) PyErr_Clear();
  return object;
#else
  PyObject* object = PyWeakref_GET_OBJECT(ref);
  return object == Py_None ? nullptr : Py_NewRef(object);
#endif
}

// nullptr with an exception set. The method itself may be gone before the call returns.
PyObject* call_weak_method(const WeakMethod& method, PyObject* args, PyObject* kwargs);

}  // namespace pertoken::bindings
