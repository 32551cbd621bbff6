// Captures and replays of CUDA graphs as torch makes them: what its CUDAGraph tells of a capture,
// and the wrapper that stands in the place of CUDAGraph.replay. Under the GIL.
#pragma once

#include <Python.h>

#include <memory>

#include "bindings/pybind_names.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// Recorder.begin_capture(), end_capture() and abandon_captures().
void bind_graphs(pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

// GraphReplayCall(inner, recorder, site, graphs): `graphs` is a dict from the id() of a CUDAGraph
// to what end_capture() gave for it.
bool add_graph_replay_call_type(PyObject* module);

}  // namespace pertoken::bindings
