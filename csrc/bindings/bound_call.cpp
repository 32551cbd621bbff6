#include "bindings/bound_call.h"

namespace pertoken::bindings {

namespace {

// With the arguments in a tuple, however many they are.
PyObject* call_with_tuple(PyObject* function, PyObject* instance, PyObject* args,
                          PyObject* kwargs) {
  const Py_ssize_t count = PyTuple_GET_SIZE(args);
  PyObject* all_args = PyTuple_New(count + 1);
  if (all_args == nullptr) return nullptr;
  PyTuple_SET_ITEM(all_args, 0, Py_NewRef(instance));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyTuple_SET_ITEM(all_args, i + 1, Py_NewRef(PyTuple_GET_ITEM(args, i)));
  }
  PyObject* result = PyObject_Call(function, all_args, kwargs);
  Py_DECREF(all_args);
  return result;
}

}  // namespace

PyObject* call_bound(PyObject* function, PyObject* instance, PyObject* args, PyObject* kwargs) {
  constexpr Py_ssize_t kFewArguments = 7;
  const Py_ssize_t count = PyTuple_GET_SIZE(args);
  PyObject* result = nullptr;
  Py_INCREF(function);
  if (count <= kFewArguments) {
    // The caller's tuple holds them. The first place is the callee's to use.
    PyObject* all_args[kFewArguments + 2];
    all_args[1] = instance;
    for (Py_ssize_t i = 0; i < count; ++i) all_args[i + 2] = PyTuple_GET_ITEM(args, i);
    const size_t flagged_count = static_cast<size_t>(count + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
    result = kwargs == nullptr || PyDict_GET_SIZE(kwargs) == 0
                 ? PyObject_Vectorcall(function, all_args + 1, flagged_count, nullptr)
                 : PyObject_VectorcallDict(function, all_args + 1, flagged_count, kwargs);
  } else {
    result = call_with_tuple(function, instance, args, kwargs);
  }
  Py_DECREF(function);
  return result;
}

}  // namespace pertoken::bindings
