// A tensor's memory as Python hands it over: an address, the number of a format, sizes and strides.
// Under the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/tensor_view.h"

namespace pertoken::bindings {

// Throws py::value_error for what no tensor has; the address is taken as it is.
TensorView view_of(uintptr_t address, int format, const pybind11::tuple& shape,
                   const pybind11::tuple& strides_bytes);

}  // namespace pertoken::bindings
