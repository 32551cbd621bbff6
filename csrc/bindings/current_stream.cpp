#include "bindings/current_stream.h"

#include "bindings/owned.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

bool find_current_stream(PyObject* current_stream, Recorder& recorder, cuda::GpuPlace& place,
                         std::string& reason) {
  if (current_stream == Py_None) {
    reason = "this torch does not tell its current stream";
    return false;
  }
  const Owned device(PyLong_FromLong(place.device));
  const Owned handle(device ? PyObject_CallOneArg(current_stream, device.get()) : nullptr);
  if (!handle || !PyLong_Check(handle.get())) {
    discard_error();
    recorder.count_fault();
    return false;
  }
  place.stream = static_cast<cuda::CUstream>(PyLong_AsVoidPtr(handle.get()));
  discard_error();
  return true;
}

}  // namespace pertoken::bindings
