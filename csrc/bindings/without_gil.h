// Runs work without the GIL. Unlike a guard object, which takes it again in a destructor, this is
// safe in daemon threads: once the interpreter ends, taking the GIL ends the thread, by unwinding
// its stack, which a destructor turns into the end of the process. Nor would the caller's Python
// objects survive the unwinding, since they are released without the GIL: the thread waits for the
// end of the process instead, as it does from Python 3.14 on.
#pragma once

#include <Python.h>
#include <unistd.h>

#include <exception>

// As pybind11 does: the C++ library of GNU alone lets an ending thread be caught.
#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

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
#ifdef __GLIBCXX__
  try {
    PyEval_RestoreThread(thread);
  } catch (const abi::__forced_unwind&) {
    while (true) pause();
  }
#else
  PyEval_RestoreThread(thread);
#endif
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace pertoken::bindings
