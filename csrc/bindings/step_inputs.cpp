#include "bindings/step_inputs.h"

#include <cstring>
#include <new>

namespace pertoken::bindings {

namespace {

// An owned reference, released at the end of the scope.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  ~Owned() { Py_XDECREF(object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  PyObject* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_floating_point = PyUnicode_InternFromString("is_floating_point");
  PyObject* get_seq_length = PyUnicode_InternFromString("get_seq_length");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* is_contiguous = PyUnicode_InternFromString("is_contiguous");
  PyObject* itemsize = PyUnicode_InternFromString("itemsize");
  PyObject* item = PyUnicode_InternFromString("item");
};

const Names& names() {
  static const Names instance;
  return instance;
}

// The shape as a tuple of up to `limit` sizes; the number of dimensions, -1 when there is none.
Py_ssize_t read_shape(PyObject* tensor, int64_t* sizes, Py_ssize_t limit) {
  const Owned shape(PyObject_GetAttr(tensor, names().shape));
  if (!shape) {
    PyErr_Clear();
    return -1;
  }
  if (!PyTuple_Check(shape.get())) return -1;
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape.get());
  for (Py_ssize_t i = 0; i < dims && i < limit; ++i) {
    sizes[i] = integer_argument(PyTuple_GET_ITEM(shape.get(), i), -1);
  }
  return dims;
}

bool is_floating(PyObject* tensor) {
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  const Owned floating(dtype ? PyObject_GetAttr(dtype.get(), names().is_floating_point) : nullptr);
  if (!floating) PyErr_Clear();
  return floating.get() == Py_True;
}

bool is_true(PyObject* object, PyObject* name) {
  const Owned value(PyObject_GetAttr(object, name));
  if (!value) PyErr_Clear();
  return value.get() == Py_True;
}

bool returns_true(PyObject* object, PyObject* method) {
  const Owned value(PyObject_CallMethodNoArgs(object, method));
  if (!value) PyErr_Clear();
  return value.get() == Py_True;
}

// Counts the elements that are not zero in each row of `width` elements of `bytes` bytes. A mask of
// floats is all zero bits where it masks, or not a mask of this form.
void count_nonzero(const char* data, int64_t rows, int64_t width, int64_t bytes,
                   std::vector<uint32_t>& valid) {
  for (int64_t row = 0; row < rows; ++row) {
    uint32_t count = 0;
    for (int64_t i = 0; i < width; ++i, data += bytes) {
      uint64_t bits = 0;
      std::memcpy(&bits, data, static_cast<size_t>(bytes));
      count += bits != 0;
    }
    valid.push_back(count);
  }
}

}  // namespace

ForwardSignature::~ForwardSignature() {
  for (auto& places : places_) {
    for (ArgumentPlace& place : places) Py_DECREF(place.keyword);
  }
}

void ForwardSignature::add(ArgumentRole role, PyObject* keyword, int position) {
  PyObject* interned = Py_NewRef(keyword);
  PyUnicode_InternInPlace(&interned);
  places_[static_cast<size_t>(role)].push_back({interned, position});
}

PyObject* ForwardSignature::find(ArgumentRole role, PyObject* args,
                                 PyObject* kwargs) const noexcept {
  for (const ArgumentPlace& place : places_[static_cast<size_t>(role)]) {
    PyObject* value = nullptr;
    if (kwargs != nullptr) value = PyDict_GetItemWithError(kwargs, place.keyword);
    if (value == nullptr && place.position >= 0 && place.position < PyTuple_GET_SIZE(args)) {
      value = PyTuple_GET_ITEM(args, place.position);
    }
    if (value != nullptr && value != Py_None) return value;
  }
  return nullptr;
}

InputShape input_shape(const ForwardSignature& signature, PyObject* args, PyObject* kwargs,
                       bool& failed) noexcept {
  InputShape result;
  int64_t sizes[2] = {-1, -1};
  if (PyObject* ids = signature.find(ArgumentRole::kIds, args, kwargs)) {
    const Py_ssize_t dims = read_shape(ids, sizes, 2);
    if (dims == 2) return {sizes[0], sizes[1]};
    if (dims == 1) return {1, sizes[0]};
    failed = true;
    return result;
  }
  if (PyObject* embeds = signature.find(ArgumentRole::kEmbeds, args, kwargs)) {
    const Py_ssize_t dims = read_shape(embeds, sizes, 2);
    if (dims == 3) return {sizes[0], sizes[1]};
    if (dims == 2) return {1, sizes[0]};
    failed = true;
    return result;
  }
  if (!signature.takes_first_positional) return result;
  PyObject* first = nullptr;
  if (PyTuple_GET_SIZE(args) > 0) {
    first = PyTuple_GET_ITEM(args, 0);
  } else if (kwargs != nullptr) {
    Py_ssize_t position = 0;
    PyObject* key = nullptr;
    PyDict_Next(kwargs, &position, &key, &first);
  }
  if (first == nullptr) return result;
  const Py_ssize_t dims = read_shape(first, sizes, 2);
  if (dims < 1) return result;
  if (is_floating(first)) return {sizes[0], -1};
  return dims == 1 ? InputShape{1, sizes[0]} : InputShape{sizes[0], sizes[1]};
}

int64_t integer_argument(PyObject* value, int64_t otherwise) noexcept {
  if (value == nullptr || !PyLong_Check(value)) return otherwise;
  const long long number = PyLong_AsLongLong(value);
  if (number == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    return otherwise;
  }
  return number;
}

int64_t cache_length(PyObject* cache, bool& failed) noexcept {
  if (PyTuple_Check(cache)) {  // the older form: a tuple a layer of (rows, heads, length, width)
    PyObject* value = cache;
    while (PyTuple_Check(value) && PyTuple_GET_SIZE(value) > 0) value = PyTuple_GET_ITEM(value, 0);
    int64_t sizes[4];
    return read_shape(value, sizes, 4) == 4 ? sizes[2] : -1;
  }
  const Owned method(PyObject_GetAttr(cache, names().get_seq_length));
  if (!method) {  // a recurrent state has no length
    PyErr_Clear();
    return -1;
  }
  const Owned length(PyObject_CallNoArgs(method.get()));
  if (!length) {
    PyErr_Clear();
    failed = true;
    return -1;
  }
  if (PyLong_Check(length.get())) return integer_argument(length.get(), -1);
  if (!is_true(length.get(), names().is_cpu)) return -1;
  const Owned item(PyObject_CallMethodNoArgs(length.get(), names().item));
  if (!item) PyErr_Clear();
  return integer_argument(item.get(), -1);
}

MaskReading valid_tokens(PyObject* mask, int64_t rows, std::vector<uint32_t>& valid) noexcept {
  int64_t sizes[2] = {-1, -1};
  if (read_shape(mask, sizes, 2) != 2 || sizes[0] != rows) return MaskReading::kUnreadable;
  if (!is_true(mask, names().is_cpu)) return MaskReading::kUnreadable;
  if (!returns_true(mask, names().is_contiguous)) return MaskReading::kUnreadable;
  const Owned address(PyObject_CallMethodNoArgs(mask, names().data_ptr));
  const Owned dtype(address ? PyObject_GetAttr(mask, names().dtype) : nullptr);
  const Owned itemsize(dtype ? PyObject_GetAttr(dtype.get(), names().itemsize) : nullptr);
  if (!itemsize) {
    PyErr_Clear();
    return MaskReading::kUnreadable;
  }
  const void* data = PyLong_AsVoidPtr(address.get());
  const int64_t bytes = integer_argument(itemsize.get(), 0);
  if (data == nullptr || bytes < 1 || bytes > 8) {
    PyErr_Clear();
    return MaskReading::kUnreadable;
  }
  try {
    valid.reserve(static_cast<size_t>(rows));
    count_nonzero(static_cast<const char*>(data), rows, sizes[1], bytes, valid);
  } catch (const std::bad_alloc&) {
    return MaskReading::kUnreadable;
  }
  return MaskReading::kRead;
}

}  // namespace pertoken::bindings
