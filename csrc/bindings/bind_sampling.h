// The sampler as Python sees it: how it is set, and what it says of itself.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/recorder.h"

namespace pertoken::bindings {

void bind_sampling(pybind11::module_& m,
                   pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

}  // namespace pertoken::bindings
