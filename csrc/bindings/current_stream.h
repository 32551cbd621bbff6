// Torch's current stream on a GPU. Under the GIL.
#pragma once

#include <Python.h>

#include <string>

#include "core/recorder.h"
#include "cuda/gpu_place.h"

namespace pertoken::bindings {

// That of `place.device`, as `current_stream(device)` gives its handle, or None where this torch
// has no such function. False, with no exception set, with a reason for people, or counted as a
// fault of the recorder's.
bool find_current_stream(PyObject* current_stream, Recorder& recorder, cuda::GpuPlace& place,
                         std::string& reason);

}  // namespace pertoken::bindings
