// Triggers as Python sees them: armed once a start, waited for by the thread that dumps.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/recorder.h"

namespace pertoken::bindings {

void bind_triggers(pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

}  // namespace pertoken::bindings
