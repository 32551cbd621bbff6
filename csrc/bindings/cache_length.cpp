#include "bindings/cache_length.h"

#include "bindings/owned.h"
#include "bindings/step_inputs.h"
#include "bindings/tensor_sizes.h"
#include "core/record.h"
#include "core/step_data.h"

#if PY_VERSION_HEX >= 0x030D0000
// Exported as before, and declared in the interpreter's own headers only.
extern "C" int _PyObject_GetMethod(PyObject* object, PyObject* name, PyObject** method);
#endif

namespace pertoken::bindings {

namespace {

constexpr Py_ssize_t kKeyDimensions = 4;  // (rows, heads, length, width)

struct CacheNames {
  PyObject* get_seq_length;
  PyObject* layers;
  PyObject* is_initialized;
  PyObject* keys;
};

PERTOKEN_STEP_DATA constinit CacheNames known_names{};

const CacheNames& cache_names() {
  if (known_names.keys == nullptr) [[unlikely]] {
    known_names = {
        PyUnicode_InternFromString("get_seq_length"), PyUnicode_InternFromString("layers"),
        PyUnicode_InternFromString("is_initialized"), PyUnicode_InternFromString("keys")};
  }
  return known_names;
}

// Of the process; held for good, as the classes that have them are.
struct KnownFunctions {
  PyObject* of_cache = nullptr;
  PyObject* of_layer = nullptr;
};

constinit KnownFunctions known;

// Whether the object's get_seq_length is this function. A method is found without being bound, for
// which an object would be made: 1 says that it is a function of the object's class.
bool counts_by(PyObject* object, PyObject* function) {
  PyObject* found = nullptr;
  const bool is_unbound = _PyObject_GetMethod(object, cache_names().get_seq_length, &found) == 1;
  const Owned method(found);
  return is_unbound && found == function;
}

// The first layer of a cache, both of which tell their length by the known functions, as a new
// reference. Null where there are no layers, which `is_empty` says, and where anything is not as
// expected, perhaps with an exception set.
PyObject* known_layer(PyObject* cache, bool& is_empty) {
  is_empty = false;
  if (known.of_cache == nullptr || !counts_by(cache, known.of_cache)) return nullptr;
  const Owned layer(first_layer(cache, is_empty));
  return layer && counts_by(layer.get(), known.of_layer) ? Py_NewRef(layer.get()) : nullptr;
}

// What no cache holds is no length: sums of it and of what is fed might not fit either.
int64_t possible_length(int64_t length) {
  return length >= 0 && length < int64_t{kNone32} ? length : -1;
}

// How many tokens it holds; -1 where it cannot be told, perhaps with an exception set.
int64_t layer_length(PyObject* layer) {
  const Owned keys(PyObject_GetAttr(layer, cache_names().keys));
  if (!keys) return -1;
  if (keys.get() == Py_None) {
    const Owned is_initialized(PyObject_GetAttr(layer, cache_names().is_initialized));
    return is_initialized.get() == Py_False ? 0 : -1;
  }
  int64_t sizes[kKeyDimensions] = {};
  if (read_shape(keys.get(), sizes, kKeyDimensions) != kKeyDimensions) return -1;
  int64_t length = sizes[2];
  for (const int64_t size : sizes) {
    if (size == 0) length = 0;
  }
  return possible_length(length);
}

}  // namespace

PyObject* first_layer(PyObject* cache, bool& is_empty) {
  is_empty = false;
  PyObject* const layers = PyObject_GetAttr(cache, known_names.layers);
  if (layers == nullptr) return nullptr;
  PyObject* layer = nullptr;
  if (PyList_Check(layers)) {
    is_empty = PyList_GET_SIZE(layers) == 0;
    if (!is_empty) layer = Py_NewRef(PyList_GET_ITEM(layers, 0));
  }
  Py_DECREF(layers);
  return layer;
}

int64_t kept_layer_length(PyObject* layer) {
  PyObject* const keys = PyObject_GetAttr(layer, known_names.keys);
  if (keys == nullptr) return -1;
  int64_t sizes[kKeyDimensions] = {};
  const Py_ssize_t dims = kept_sizes(keys, sizes, kKeyDimensions);
  Py_DECREF(keys);
  return dims == kKeyDimensions ? possible_length(sizes[2]) : -1;
}

int64_t cache_length(PyObject* cache, bool& failed, PyObject** layer) {
  if (PyTuple_Check(cache)) {  // the older form: a tuple a layer of (rows, heads, length, width)
    PyObject* value = cache;
    while (PyTuple_Check(value) && PyTuple_GET_SIZE(value) > 0) value = PyTuple_GET_ITEM(value, 0);
    int64_t sizes[4];
    return read_shape(value, sizes, 4) == 4 ? possible_length(sizes[2]) : -1;
  }
  // What the known functions return, without a call into Python: these, in the interpreter's cold
  // code, are most of what a step costs.
  bool is_empty = false;
  const Owned first(known_layer(cache, is_empty));
  if (is_empty) return 0;
  if (first) {
    if (const int64_t length = layer_length(first.get()); length >= 0) {
      if (layer != nullptr) *layer = Py_NewRef(first.get());
      return length;
    }
  }
  discard_error();
  const Owned method(PyObject_GetAttr(cache, cache_names().get_seq_length));
  if (!method) {  // a recurrent state has no length
    discard_error();
    return -1;
  }
  const Owned length(PyObject_CallNoArgs(method.get()));
  if (!length) {
    discard_error();
    failed = true;
    return -1;
  }
  return possible_length(host_integer(length.get(), -1));
}

void set_known_cache(PyObject* cache_function, PyObject* layer_function) {
  const Owned before_cache(known.of_cache);
  const Owned before_layer(known.of_layer);
  known = {Py_NewRef(cache_function), Py_NewRef(layer_function)};
}

}  // namespace pertoken::bindings
