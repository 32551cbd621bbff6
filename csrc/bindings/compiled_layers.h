// Spans of modules that the compiler has inlined. What it compiled calls two operators of ours
// round each of them; the operators come here. Under the GIL, on the model's threads.
#pragma once

#include <Python.h>

#include "bindings/pybind_names.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// After a forward that raised: ends the spans that are open on the calling thread in this recorder,
// at the time of the last operator, so that those inside them have a parent.
[[gnu::noinline, gnu::cold]] void close_compiled_layers(Recorder& recorder,
                                                        ThreadBuffer& buffer) noexcept;

void bind_compiled_layers(pybind11::module_& m);

}  // namespace pertoken::bindings
