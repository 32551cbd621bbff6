#include "bindings/tensor_reading.h"

#include "bindings/step_inputs.h"

namespace pertoken::bindings {

Reading find_elsewhere(PyObject* value, PyObject* read_elsewhere, TensorView& view,
                       cuda::GpuPlace& place, Owned& memory) {
  memory.reset(PyObject_CallOneArg(read_elsewhere, value));
  if (!memory) discard_error();
  if (!memory || memory.get() == Py_None) return Reading::kRefused;
  void* stream = nullptr;
  if (!view_of_memory(memory.get(), view, place.device, stream)) return Reading::kUnknown;
  place.stream = static_cast<cuda::CUstream>(stream);
  return Reading::kReady;
}

}  // namespace pertoken::bindings
