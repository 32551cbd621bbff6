// Calls a function as the method of an object, without the bound method that Python would make.
#pragma once

#include <Python.h>

namespace pertoken::bindings {

// `function(instance, *args, **kwargs)`, with `args` a tuple and `kwargs` a dict or nullptr. Holds
// the function meanwhile, which may be replaced where it stands; the instance is the caller's to
// hold.
PyObject* call_bound(PyObject* function, PyObject* instance, PyObject* args, PyObject* kwargs);

}  // namespace pertoken::bindings
