#include "bindings/host_tensor.h"

#include <algorithm>
#include <span>

#include "bindings/dlpack_tensor.h"
#include "bindings/owned.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

namespace {

constexpr int kDeepestOutput = 4;

// Borrowed for ever: types, dtypes and functions of torch live as long as the process.
struct Torch {
  PyTypeObject* tensor_type = nullptr;
  PyObject* formats = nullptr;
  PyObject* strided = nullptr;
  PyObject* get_tracing_state = nullptr;
} torch;

struct Names {
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* get_device = PyUnicode_InternFromString("get_device");
  PyObject* is_complex = PyUnicode_InternFromString("is_complex");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* is_cuda = PyUnicode_InternFromString("is_cuda");
  PyObject* is_floating_point = PyUnicode_InternFromString("is_floating_point");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* is_nested = PyUnicode_InternFromString("is_nested");
  PyObject* itemsize = PyUnicode_InternFromString("itemsize");
  PyObject* layout = PyUnicode_InternFromString("layout");
  PyObject* nbytes = PyUnicode_InternFromString("nbytes");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* storage_offset = PyUnicode_InternFromString("storage_offset");
  PyObject* stride = PyUnicode_InternFromString("stride");
  PyObject* untyped_storage = PyUnicode_InternFromString("untyped_storage");
};

const Names& names() {
  static const Names instance;
  return instance;
}

// The number of the format of a dtype, -1 for others.
int format_of(PyObject* dtype) {
  PyObject* number = PyDict_GetItemWithError(torch.formats, dtype);
  if (number == nullptr) discard_error();
  return number == nullptr ? -1 : static_cast<int>(integer_argument(number, -1));
}

bool is_floating(PyObject* tensor) {
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  if (dtype && format_of(dtype.get()) >= 0) return true;
  const Owned floating(dtype ? PyObject_GetAttr(dtype.get(), names().is_floating_point) : nullptr);
  if (!floating) discard_error();
  return floating.get() == Py_True;
}

PyObject* find_floating(PyObject* output, int depth) {
  if (PyObject_TypeCheck(output, torch.tensor_type)) {
    return is_floating(output) ? Py_NewRef(output) : nullptr;
  }
  if (depth == kDeepestOutput) return nullptr;
  if (PyTuple_Check(output) || PyList_Check(output)) {
    // Asking a tensor may run Python code, which may change a list.
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(output); ++i) {
      const Owned item(Py_NewRef(PySequence_Fast_GET_ITEM(output, i)));
      if (PyObject* found = find_floating(item.get(), depth + 1)) return found;
    }
  } else if (PyDict_Check(output)) {
    const Owned items(PyDict_Values(output));
    if (!items) discard_error();
    if (items) return find_floating(items.get(), depth + 1);
  }
  return nullptr;
}

bool attribute_is(PyObject* object, PyObject* name, PyObject* expected) {
  const Owned value(PyObject_GetAttr(object, name));
  if (!value) discard_error();
  return value.get() == expected;
}

bool method_integer(PyObject* object, PyObject* name, int64_t& number) {
  const Owned value(PyObject_CallMethodNoArgs(object, name));
  if (!value) discard_error();
  if (!value || !PyLong_CheckExact(value.get())) return false;
  number = static_cast<int64_t>(PyLong_AsUnsignedLongLongMask(value.get()));
  return true;
}

bool read_integers(PyObject* tuple, int64_t* numbers, Py_ssize_t count) {
  if (tuple == nullptr) discard_error();
  if (tuple == nullptr || !PyTuple_Check(tuple) || PyTuple_GET_SIZE(tuple) != count) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* number = PyTuple_GET_ITEM(tuple, i);
    if (!PyLong_Check(number)) return false;
    numbers[i] = integer_argument(number, 0);
  }
  return true;
}

// The memory from the first value at `data` to the last, as the strides say, lies in the storage.
bool is_in_storage(PyObject* tensor, const std::byte* data, std::span<const int64_t> shape,
                   const int64_t* strides_bytes, int64_t item_bytes) {
  int64_t last_byte = 0;
  int64_t held_bytes = 0;
  if (!method_integer(tensor, names().storage_offset, last_byte)) return false;
  const Owned storage(PyObject_CallMethodNoArgs(tensor, names().untyped_storage));
  if (!storage) discard_error();
  if (!storage || !method_integer(storage.get(), names().nbytes, held_bytes)) return false;
  last_byte = (last_byte + 1) * item_bytes;
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    if (shape[dim] == 0) return true;
    last_byte += (shape[dim] - 1) * strides_bytes[dim];
  }
  return data != nullptr && last_byte <= held_bytes;
}

bool is_in_storage(PyObject* tensor, const TensorView& view, int64_t item_bytes) {
  return is_in_storage(tensor, view.data, {view.shape.data(), static_cast<size_t>(view.dims)},
                       view.strides_bytes.data(), item_bytes);
}

// A tensor whose memory is as it says, where `where` says it is.
bool is_plain(PyObject* tensor, PyObject* where) {
  if (torch.tensor_type == nullptr || !is_exact_tensor(tensor)) return false;
  return attribute_is(tensor, where, Py_True) &&
         attribute_is(tensor, names().layout, torch.strided) &&
         attribute_is(tensor, names().is_nested, Py_False);
}

// Whether its values are what its memory holds, with their signs.
bool has_own_signs(PyObject* tensor) {
  const Owned is_negated(PyObject_CallMethodNoArgs(tensor, names().is_neg));
  if (!is_negated) discard_error();
  return is_negated.get() == Py_False;
}

// Of a plain tensor, where its values lie and in which form.
bool view_values(PyObject* tensor, int64_t item_bytes, TensorView& view) {
  const Owned shape(PyObject_GetAttr(tensor, names().shape));
  const Py_ssize_t dims = shape && PyTuple_Check(shape.get()) ? PyTuple_GET_SIZE(shape.get()) : -1;
  if (dims > kMaxDims || !read_integers(shape.get(), view.shape.data(), dims)) return false;
  view.dims = static_cast<int>(dims);
  const Owned strides(PyObject_CallMethodNoArgs(tensor, names().stride));
  if (!read_integers(strides.get(), view.strides_bytes.data(), dims)) return false;
  for (size_t i = 0; i < static_cast<size_t>(dims); ++i) view.strides_bytes[i] *= item_bytes;

  int64_t address = 0;
  if (!method_integer(tensor, names().data_ptr, address)) return false;
  view.data = reinterpret_cast<const std::byte*>(address);  // NOLINT(performance-no-int-to-ptr)
  return is_in_storage(tensor, view, item_bytes);
}

// The number of the GPU that it lies on.
bool read_device(PyObject* tensor, int& device) {
  int64_t index = -1;
  if (!method_integer(tensor, names().get_device, index)) return false;
  device = static_cast<int>(index);
  return index >= 0;
}

// The same of what its library describes. Whether the values are negated, and whether the memory
// is still there, is not part of a description.
bool view_described(PyObject* tensor, const DlpackTensor& described, TensorView& view) {
  const std::optional<FloatFormat> format = float_format(described);
  if (!format.has_value() || described.dims > kMaxDims || described.strides == nullptr)
    return false;
  view.format = *format;
  view.dims = described.dims;
  const int64_t item_bytes = bytes_of(view.format);
  for (int32_t i = 0; i < described.dims; ++i) {
    const auto dim = static_cast<size_t>(i);
    view.shape[dim] = described.shape[i];
    view.strides_bytes[dim] = described.strides[i] * item_bytes;
  }
  view.data = static_cast<const std::byte*>(described.data) + described.byte_offset;
  return has_own_signs(tensor) && is_in_storage(tensor, view, item_bytes);
}

// Of a plain tensor, what its type is.
bool read_item_type(PyObject* tensor, int64_t& bytes, HostItems::Sort& sort) {
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  const Owned is_complex(dtype ? PyObject_GetAttr(dtype.get(), names().is_complex) : nullptr);
  const Owned itemsize(is_complex ? PyObject_GetAttr(dtype.get(), names().itemsize) : nullptr);
  if (!itemsize) discard_error();
  if (!itemsize) return false;
  bytes = integer_argument(itemsize.get(), 0);
  sort = is_floating(tensor)            ? HostItems::kFloats
         : is_complex.get() == Py_False ? HostItems::kIntegers
                                        : HostItems::kOthers;
  return true;
}

bool fits(const HostItems& items) { return items.dims >= 1 && items.dims <= HostItems::kMostDims; }

// As torch says of it what it is. The same as below.
bool view_plain_items(PyObject* tensor, HostItems& items) {
  TensorView view;
  if (!is_plain(tensor, names().is_cpu) || !read_item_type(tensor, items.bytes, items.sort) ||
      !view_values(tensor, items.bytes, view)) {
    return false;
  }
  items.data = view.data;
  items.dims = view.dims;
  if (!fits(items)) return false;
  const auto dims = static_cast<size_t>(items.dims);
  std::copy_n(view.shape.begin(), dims, items.shape.begin());
  std::copy_n(view.strides_bytes.begin(), dims, items.strides_bytes.begin());
  return items.data != nullptr;
}

bool view_plain(PyObject* tensor, TensorView& view) {
  if (!has_own_signs(tensor)) return false;
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  if (!dtype) discard_error();
  if (!dtype) return false;
  const int format = format_of(dtype.get());
  if (format < 0 || format >= kFloatFormats) return false;
  view.format = static_cast<FloatFormat>(format);
  return view_values(tensor, bytes_of(view.format), view);
}

}  // namespace

void learn_torch(PyObject* tensor_type, PyObject* parameter_type, PyObject* formats,
                 PyObject* strided, PyObject* get_tracing_state) {
  if (torch.tensor_type != nullptr) return;
  learn_exchange_table(tensor_type, parameter_type);
  torch.formats = Py_NewRef(formats);
  torch.strided = Py_NewRef(strided);
  torch.get_tracing_state = Py_NewRef(get_tracing_state);
  torch.tensor_type = reinterpret_cast<PyTypeObject*>(Py_NewRef(tensor_type));
}

bool is_being_traced() {
  if (torch.tensor_type == nullptr) return false;
  const Owned state(PyObject_CallNoArgs(torch.get_tracing_state));
  if (!state) discard_error();
  return state && state.get() != Py_None;
}

PyObject* first_floating_tensor(PyObject* output) {
  return torch.tensor_type == nullptr ? nullptr : find_floating(output, 0);
}

bool view_of_memory(PyObject* memory, TensorView& view, int& device, void*& stream) {
  const Owned address(PyObject_GetAttrString(memory, "address"));
  const Owned format(address ? PyObject_GetAttrString(memory, "format") : nullptr);
  const Owned shape(format ? PyObject_GetAttrString(memory, "shape") : nullptr);
  const Owned strides(shape ? PyObject_GetAttrString(memory, "strides_bytes") : nullptr);
  const Owned where(strides ? PyObject_GetAttrString(memory, "device") : nullptr);
  if (!where) discard_error();
  if (!where || !PyTuple_Check(shape.get())) return false;
  device = -1;
  if (where.get() != Py_None) {
    const Owned ordinal(PyObject_GetAttrString(where.get(), "ordinal"));
    const Owned handle(ordinal ? PyObject_GetAttrString(where.get(), "stream") : nullptr);
    if (!handle) discard_error();
    if (!handle || !PyLong_Check(handle.get())) return false;
    device = static_cast<int>(integer_argument(ordinal.get(), -1));
    stream = PyLong_AsVoidPtr(handle.get());
    discard_error();
    if (device < 0) return false;
  }
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape.get());
  const int64_t number = integer_argument(format.get(), -1);
  if (dims > kMaxDims || number < 0 || number >= kFloatFormats) return false;
  if (!read_integers(shape.get(), view.shape.data(), dims) ||
      !read_integers(strides.get(), view.strides_bytes.data(), dims)) {
    return false;
  }
  view.dims = static_cast<int>(dims);
  view.format = static_cast<FloatFormat>(number);
  view.data = static_cast<const std::byte*>(PyLong_AsVoidPtr(address.get()));
  discard_error();
  return true;
}

bool view_tensor(PyObject* tensor, TensorView& view, int& device) {
  device = -1;
  DlpackTensor described;
  if (describe_tensor(tensor, described)) {
    if (described.device_type == kDlpackCuda) device = described.device_ordinal;
    if (device >= 0 || described.device_type == kDlpackCpu) {
      return view_described(tensor, described, view);
    }
  }
  if (is_plain(tensor, names().is_cpu)) return view_plain(tensor, view);
  return is_plain(tensor, names().is_cuda) && view_plain(tensor, view) &&
         read_device(tensor, device);
}

bool view_host_items(PyObject* tensor, HostItems& items) {
  constexpr uint8_t kLastInteger = 1;  // of DLDataTypeCode: signed, unsigned, others
  DlpackTensor described;
  if (!describe_tensor(tensor, described) || described.type_lanes != 1 ||
      described.strides == nullptr) {
    return view_plain_items(tensor, items);
  }
  items.dims = described.dims;
  if (described.device_type != kDlpackCpu || !fits(items)) return false;
  items.bytes = described.type_bits / 8;
  items.sort = described.type_code <= kLastInteger   ? HostItems::kIntegers
               : float_format(described).has_value() ? HostItems::kFloats
                                                     : HostItems::kOthers;
  for (size_t dim = 0; dim < static_cast<size_t>(items.dims); ++dim) {
    items.shape[dim] = described.shape[dim];
    items.strides_bytes[dim] = described.strides[dim] * items.bytes;
  }
  items.data = static_cast<const std::byte*>(described.data) + described.byte_offset;
  return items.data != nullptr &&
         is_in_storage(tensor, items.data, {items.shape.data(), static_cast<size_t>(items.dims)},
                       items.strides_bytes.data(), items.bytes);
}

bool view_gpu_integers(PyObject* tensor, TensorView& view, int64_t& value_bytes, int& device) {
  HostItems::Sort sort = HostItems::kOthers;
  if (!is_plain(tensor, names().is_cuda) || !read_item_type(tensor, value_bytes, sort)) {
    return false;
  }
  if (sort != HostItems::kIntegers || (value_bytes != 4 && value_bytes != 8)) return false;
  return view_values(tensor, value_bytes, view) && read_device(tensor, device);
}

}  // namespace pertoken::bindings
