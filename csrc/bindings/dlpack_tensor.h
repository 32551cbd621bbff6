// A tensor as its library describes it in C: shape, strides, type and place by one call, where
// attributes are a call into Python each and make an object each. By the exchange table of DLPack
// 1.3 (https://dmlc.github.io/dlpack/latest/c_api.html). Under the GIL.
#pragma once

#include <Python.h>

#include <cstdint>
#include <optional>

#include "core/float_bits.h"

namespace pertoken::bindings {

// DLTensor, in the order of DLPack 1.x.
struct DlpackTensor {
  void* data;
  int32_t device_type;
  int32_t device_ordinal;
  int32_t dims;
  uint8_t type_code;
  uint8_t type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; may be null where the tensor is dense
  uint64_t byte_offset;
};

// DLDeviceType.
inline constexpr int32_t kDlpackCpu = 1;
inline constexpr int32_t kDlpackCuda = 2;

// Has tensors of exactly these two types described by the table that `tensor_type` offers now in
// `__dlpack_c_exchange_api__`; where it offers none of major version 1, nothing is described.
void learn_exchange_table(PyObject* tensor_type, PyObject* parameter_type);

// Of the process: torch's types live as long. Null before they are learned.
struct TensorTypes {
  PyTypeObject* tensor;
  PyTypeObject* parameter;
};
extern TensorTypes tensor_types;

// Whether it is of exactly one of these two types: a subclass may mean something else by what it
// says of itself.
[[gnu::always_inline]] inline bool is_exact_tensor(PyObject* object) noexcept {
  return Py_IS_TYPE(object, tensor_types.tensor) || Py_IS_TYPE(object, tensor_types.parameter);
}

// False for what is of another type, and for what DLPack cannot say: sparse, nested, quantized or
// without memory. `shape` and `strides` live as long as the tensor is not changed. Runs no Python
// code and leaves no exception set.
bool describe_tensor(PyObject* tensor, DlpackTensor& description) noexcept;

// The format of its values; nullopt where they are no floating-point numbers that we know.
std::optional<FloatFormat> float_format(const DlpackTensor& description) noexcept;

}  // namespace pertoken::bindings
