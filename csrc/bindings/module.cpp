// pertoken._native: the native module. Everything here runs once, at import, under the GIL.
#include "bindings/module.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native core of pertoken.";
  pertoken::bindings::bind_build(m);
  pertoken::bindings::bind_clock(m);
  pertoken::bindings::bind_recorder(m);
  pertoken::bindings::bind_export(m);
  pertoken::bindings::bind_histogram(m);
  pertoken::bindings::bind_gpu(m);
}
