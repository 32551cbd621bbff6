#include "bindings/tensor_arguments.h"

namespace py = pybind11;

namespace pertoken::bindings {

TensorView view_of(uintptr_t address, int format, const py::tuple& shape,
                   const py::tuple& strides_bytes) {
  if (shape.size() != strides_bytes.size() || shape.size() > static_cast<size_t>(kMaxDims)) {
    throw py::value_error("a tensor may have at most 64 dimensions, each with a stride");
  }
  if (format < 0 || format >= kFloatFormats) throw py::value_error("not a number of a format");
  TensorView view;
  view.data = reinterpret_cast<const std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
  view.format = static_cast<FloatFormat>(format);
  view.dims = static_cast<int>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) {
    view.shape[i] = shape[i].cast<int64_t>();
    view.strides_bytes[i] = strides_bytes[i].cast<int64_t>();
  }
  return view;
}

}  // namespace pertoken::bindings
