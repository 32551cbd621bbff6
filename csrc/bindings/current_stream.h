// Torch's current stream on a GPU. Under the GIL.
#pragma once

#include <Python.h>

#include "cuda/gpu_place.h"

namespace pertoken::bindings {

// That of `place.device`, as `current_stream(device)` gives its handle. False, with no exception
// set, where it raises or gives none.
bool find_current_stream(PyObject* current_stream, cuda::GpuPlace& place);

}  // namespace pertoken::bindings
