// The parts of the native module, each defined in its own bind_*.cpp. Called once, at import.
#pragma once

#include <pybind11/pybind11.h>

namespace pertoken::bindings {

void bind_build(pybind11::module_& m);
void bind_export(pybind11::module_& m);
void bind_gpu(pybind11::module_& m);
void bind_histogram(pybind11::module_& m);
void bind_recorder(pybind11::module_& m);
void bind_clock(pybind11::module_& m);

}  // namespace pertoken::bindings
