// The aggregates as Python sees them, and the way in for what only Python knows of requests.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/recorder.h"

namespace pertoken::bindings {

// Adds totals(), and what it needs to be told, to the recorder's class.
void bind_totals(pybind11::module_& m,
                 pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

}  // namespace pertoken::bindings
