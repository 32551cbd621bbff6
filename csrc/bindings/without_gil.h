// Runs work without the GIL. Unlike a guard object, which takes it again in a destructor, this is
// safe in daemon threads: once the interpreter ends, taking the GIL ends the thread, by unwinding
// its stack, which a destructor turns into the end of the process.
#pragma once

#include <Python.h>

#include <exception>

namespace pertoken::bindings {

template <typename Work>
void without_gil(Work&& work) {
  std::exception_ptr failure;
  PyThreadState* const thread = PyEval_SaveThread();
  try {
    work();
  } catch (...) {
    failure = std::current_exception();
  }
  PyEval_RestoreThread(thread);
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace pertoken::bindings
