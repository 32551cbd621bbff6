// An owned reference, released at the end of the scope. What is asked of users' objects may run
// Python code; when the interpreter ends meanwhile, it ends a daemon thread there by unwinding its
// stack, without the GIL: the reference is then left to the end of the process.
#pragma once

#include <Python.h>

namespace pertoken::bindings {

class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  // What goes with the object may end in Python, too, where unwinding goes through this.
  // NOLINTNEXTLINE(bugprone-unsafe-to-allow-exceptions,performance-noexcept-destructor)
  ~Owned() noexcept(false) {
    if (object_ != nullptr && PyGILState_Check()) Py_DECREF(object_);
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  void reset(PyObject* object) {
    PyObject* before = object_;
    object_ = object;
    Py_XDECREF(before);
  }
  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

}  // namespace pertoken::bindings
