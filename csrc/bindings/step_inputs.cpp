#include "bindings/step_inputs.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <new>

#include "bindings/dlpack_tensor.h"
#include "bindings/host_tensor.h"
#include "bindings/owned.h"
#include "bindings/tensor_sizes.h"
#include "core/record.h"

namespace pertoken::bindings {

namespace {

struct Names {
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* is_floating_point = PyUnicode_InternFromString("is_floating_point");
  PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
  PyObject* item = PyUnicode_InternFromString("item");
};

const Names& names() {
  static const Names instance;
  return instance;
}

bool is_floating(PyObject* tensor) {
  const Owned dtype(PyObject_GetAttr(tensor, names().dtype));
  const Owned floating(dtype ? PyObject_GetAttr(dtype.get(), names().is_floating_point) : nullptr);
  if (!floating) discard_error();
  return floating.get() == Py_True;
}

bool is_true(PyObject* object, PyObject* name) {
  const Owned value(PyObject_GetAttr(object, name));
  if (!value) discard_error();
  return value.get() == Py_True;
}

// A mask as it lies in host memory; strides in bytes.
struct HostMask {
  const std::byte* data = nullptr;
  int64_t columns = 0;
  int64_t element_bytes = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  bool zero_is_valid = false;

  uint32_t count(int64_t row, int64_t begin, int64_t end) const {
    const std::byte* at = data + row * row_stride + begin * column_stride;
    uint32_t nonzero = 0;
    for (int64_t column = begin; column < end; ++column, at += column_stride) {
      uint64_t bits = 0;
      std::memcpy(&bits, at, static_cast<size_t>(element_bytes));
      nonzero += bits != 0;
    }
    return zero_is_valid ? static_cast<uint32_t>(end - begin) - nonzero : nonzero;
  }
};

bool read_mask(PyObject* mask, int64_t rows, HostMask& result) {
  HostItems items;
  if (!view_host_items(mask, items) || items.bytes < 1 || items.bytes > 8) return false;
  const std::array<int64_t, HostItems::kMostDims>& sizes = items.shape;
  const bool is_attention = items.dims == 4 && sizes[1] > 0 && sizes[2] > 0;
  if (items.dims != 2 && !is_attention) return false;
  if (sizes[0] != rows && !(is_attention && sizes[0] == 1)) return false;
  const auto last = static_cast<size_t>(items.dims - 1);
  result.data = items.data;
  result.element_bytes = items.bytes;
  result.columns = sizes[last];
  result.column_stride = items.strides_bytes[last];
  result.row_stride = sizes[0] == rows ? items.strides_bytes[0] : 0;
  if (is_attention) {
    // What the last position sees is the row without its padding. Added to the scores, a mask of
    // floats has zeros there.
    result.data += (sizes[2] - 1) * items.strides_bytes[2];
    result.zero_is_valid = items.sort == HostItems::kFloats;
  }
  return true;
}

// Runs between two bytecodes of the main thread.
int raise_in_main_thread(void* argument) {
  const Owned exception(static_cast<PyObject*>(argument));
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.get())), exception.get());
  return -1;
}

// Raises it between two of the user's bytecodes: in the main thread, where signals' handlers raise,
// the exception itself; in another one, to which somebody sent it, one of its type, as such sending
// does.
void raise_in_user_code(PyObject* exception) {
  if (syscall(SYS_gettid) == getpid()) {
    if (Py_AddPendingCall(&raise_in_main_thread, Py_NewRef(exception)) == 0) return;
    Py_DECREF(exception);
  }
  PyThreadState_SetAsyncExc(PyThread_get_thread_ident(),
                            reinterpret_cast<PyObject*>(Py_TYPE(exception)));
}

}  // namespace

void discard_error() {
  if (PyErr_Occurred() == nullptr) return;
  if (PyErr_ExceptionMatches(PyExc_Exception) != 0) {
    PyErr_Clear();
    return;
  }
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  raise_in_user_code(value);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(traceback);
}

Py_ssize_t read_shape(PyObject* tensor, int64_t* sizes, Py_ssize_t limit) {
  if (const Py_ssize_t dims = kept_sizes(tensor, sizes, limit); dims >= 0) return dims;
  DlpackTensor described;
  if (describe_tensor(tensor, described)) {
    for (int32_t i = 0; i < described.dims && i < limit; ++i) sizes[i] = described.shape[i];
    return described.dims;
  }
  const Owned shape(PyObject_GetAttr(tensor, names().shape));
  if (!shape) {
    discard_error();
    return -1;
  }
  if (!PyTuple_Check(shape.get())) return -1;
  const Py_ssize_t dims = PyTuple_GET_SIZE(shape.get());
  for (Py_ssize_t i = 0; i < dims && i < limit; ++i) {
    sizes[i] = integer_argument(PyTuple_GET_ITEM(shape.get(), i), -1);
  }
  return dims;
}

InputShape input_shape(const ForwardSignature& signature, PyObject* args, PyObject* kwargs,
                       bool& failed) {
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
  if (!signature.takes_first_positional()) return result;
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

int64_t integer_argument(PyObject* value, int64_t otherwise) {
  if (value == nullptr || !PyLong_Check(value)) return otherwise;
  const long long number = PyLong_AsLongLong(value);
  if (number == -1 && PyErr_Occurred()) {
    discard_error();
    return otherwise;
  }
  return number;
}

int64_t host_integer(PyObject* value, int64_t otherwise) {
  if (value == nullptr || PyLong_Check(value)) return integer_argument(value, otherwise);
  if (!is_true(value, names().is_cpu)) return otherwise;
  const Owned item(PyObject_CallMethodNoArgs(value, names().item));
  if (!item) discard_error();
  return integer_argument(item.get(), otherwise);
}

bool read_tokens(PyObject* ids, int64_t rows, int64_t first, int64_t columns,
                 std::vector<int64_t>& tokens) {
  HostItems items;
  if (first < 0 || !view_host_items(ids, items) || items.sort != HostItems::kIntegers) return false;
  if (items.dims != 1 && items.dims != 2) return false;
  if (items.bytes != 4 && items.bytes != 8) return false;
  const auto last = static_cast<size_t>(items.dims - 1);
  const int64_t length = items.shape[last];
  if ((last == 0 ? 1 : items.shape[0]) != rows || first > length) return false;
  if (columns < 0) columns = length - first;
  if (columns > length - first) return false;
  try {
    tokens.resize(static_cast<size_t>(rows * columns));
  } catch (const std::exception&) {
    return false;
  }
  for (int64_t row = 0, at = 0; row < rows; ++row) {
    const std::byte* from = items.data + (last == 0 ? 0 : row * items.strides_bytes[0]);
    for (int64_t column = first; column < first + columns; ++column, ++at) {
      const std::byte* const item = from + column * items.strides_bytes[last];
      int32_t narrow = 0;
      if (items.bytes == 4) {
        std::memcpy(&narrow, item, sizeof(narrow));
        tokens[static_cast<size_t>(at)] = narrow;
      } else {
        std::memcpy(&tokens[static_cast<size_t>(at)], item, sizeof(int64_t));
      }
    }
  }
  return true;
}

bool valid_tokens(PyObject* mask, int64_t rows, int64_t past, int64_t query_len,
                  std::vector<RowTokens>& valid) {
  HostMask host;
  if (query_len < 0 || !read_mask(mask, rows, host)) return false;
  const bool past_is_covered = past >= 0 && past <= host.columns - query_len;
  if (!past_is_covered && host.columns != query_len) return false;
  const int64_t begin = past_is_covered ? past : 0;
  try {
    valid.reserve(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      valid.push_back({past_is_covered ? host.count(row, 0, past) : kNone32,
                       host.count(row, begin, begin + query_len)});
    }
  } catch (const std::exception&) {
    valid.clear();
    return false;
  }
  return true;
}

bool valid_runs(PyObject* mask, int64_t rows, int64_t past, int64_t query_len,
                std::vector<ValidRun>& runs) {
  HostMask host;
  int64_t sizes[2] = {};
  if (query_len < 1 || read_shape(mask, sizes, 2) != 2 || !read_mask(mask, rows, host))
    return false;
  const bool past_is_covered = past >= 0 && past <= host.columns - query_len;
  if (!past_is_covered && host.columns != query_len) return false;
  const int64_t first = past_is_covered ? past : 0;
  try {
    for (int64_t row = 0; row < rows; ++row) {
      int64_t begin = 0;
      for (int64_t at = 0; at <= query_len; ++at) {
        if (at < query_len && host.count(row, first + at, first + at + 1) != 0) continue;
        if (at > begin) runs.push_back({row, row, begin, at});
        begin = at + 1;
      }
    }
  } catch (const std::bad_alloc&) {
    runs.clear();
    return false;
  }
  const bool is_whole = static_cast<int64_t>(runs.size()) == rows &&
                        runs.front().end - runs.front().begin == query_len;
  if (!is_whole) return true;
  for (const ValidRun& run : runs) {
    if (run.end - run.begin != query_len) return true;
  }
  return false;
}

}  // namespace pertoken::bindings
