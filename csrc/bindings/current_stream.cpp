#include "bindings/current_stream.h"

#include "bindings/owned.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

bool find_current_stream(PyObject* current_stream, cuda::GpuPlace& place) {
  const Owned device(PyLong_FromLong(place.device));
  const Owned handle(device ? PyObject_CallOneArg(current_stream, device.get()) : nullptr);
  if (!handle || !PyLong_Check(handle.get())) {
    discard_error();
    return false;
  }
  place.stream = static_cast<cuda::CUstream>(PyLong_AsVoidPtr(handle.get()));
  discard_error();
  return true;
}

}  // namespace pertoken::bindings
