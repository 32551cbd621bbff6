// What a recorder leaves in files for the time after a crash, and how it is read back: see
// core/spool.h. Called off the hot path, under the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/recorder.h"

namespace pertoken::bindings {

void bind_spool(pybind11::module_& m,
                pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

}  // namespace pertoken::bindings
