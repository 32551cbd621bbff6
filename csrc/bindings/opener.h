// What the user enters: the Python objects behind pertoken.span, step and request. Each entry makes
// a Scope. All under the GIL.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/scope.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// A region, a step or a request as the user wrote it.
struct Opener {
  PyObject_HEAD
  ScopeKind kind;
  uint32_t site;
  StepKind step_kind;
  uint32_t step_rows;
  uint32_t tokens_committed;
};

PyObject* opener_enter(PyObject* self, PyObject* unused);
PyObject* opener_exit(PyObject* self, PyObject* const* args, Py_ssize_t count);
void opener_dealloc(PyObject* self);

// Adds a type whose instances begin with an Opener; `size` is that of an instance. False with an
// exception set.
bool add_opener(PyObject* module, const char* qualified, const char* name, size_t size,
                initproc init, destructor dealloc, PyMethodDef* methods);

template <typename F>
void for_each_active(F&& visit) {
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    Recorder* recorder = Recorder::at(slot);
    if (recorder != nullptr && recorder->active()) visit(slot, *recorder);
  }
}

}  // namespace pertoken::bindings
