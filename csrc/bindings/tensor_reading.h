// Where the values of what is read lie, an activation or logits: in a plain tensor of torch's,
// behind the current stream where that is on a GPU, or where Python finds them. Under the GIL.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/host_tensor.h"
#include "bindings/owned.h"
#include "cuda/gpu_place.h"

namespace pertoken::bindings {

enum class Reading : uint8_t {
  kReady,
  kRefused,  // and counted, by whoever was asked
  kUnknown,  // what Python found is no TensorMemory
};

// As `read_elsewhere(value)` finds it: a TensorMemory, or None where it has counted why not.
// `memory` is what holds it.
Reading find_elsewhere(PyObject* value, PyObject* read_elsewhere, TensorView& view,
                       cuda::GpuPlace& place, Owned& memory);

// `place.device` is -1 in host memory. `find_stream(place)` finds the current stream of a GPU, or
// counts why it cannot. Never leaves an exception set.
template <typename FindStream>
Reading find_values(PyObject* value, PyObject* read_elsewhere, FindStream&& find_stream,
                    TensorView& view, cuda::GpuPlace& place, Owned& memory) {
  if (!view_tensor(value, view, place.device)) {
    return find_elsewhere(value, read_elsewhere, view, place, memory);
  }
  place.stream = nullptr;
  return place.device < 0 || find_stream(place) ? Reading::kReady : Reading::kRefused;
}

}  // namespace pertoken::bindings
