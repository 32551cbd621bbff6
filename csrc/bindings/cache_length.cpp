#include "bindings/cache_length.h"

#include "bindings/owned.h"
#include "bindings/step_inputs.h"

#if PY_VERSION_HEX >= 0x030D0000
// Exported as before, and declared in the interpreter's own headers only.
extern "C" int _PyObject_GetMethod(PyObject* object, PyObject* name, PyObject** method);
#endif

namespace pertoken::bindings {

namespace {

struct CacheNames {
  PyObject* get_seq_length = PyUnicode_InternFromString("get_seq_length");
  PyObject* layers = PyUnicode_InternFromString("layers");
  PyObject* is_initialized = PyUnicode_InternFromString("is_initialized");
  PyObject* keys = PyUnicode_InternFromString("keys");
};

const CacheNames& cache_names() {
  static const CacheNames instance;
  return instance;
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

// What the known functions return, without a call into Python: these, in the interpreter's cold
// code, are most of what a step costs. False where anything is not as expected: then the cache is
// asked.
bool read_known(PyObject* cache, int64_t& length) {
  if (known.of_cache == nullptr || !counts_by(cache, known.of_cache)) return false;
  const Owned layers(PyObject_GetAttr(cache, cache_names().layers));
  if (!layers || !PyList_Check(layers.get())) return false;
  if (PyList_GET_SIZE(layers.get()) == 0) {
    length = 0;
    return true;
  }
  const Owned layer(Py_NewRef(PyList_GET_ITEM(layers.get(), 0)));
  if (!counts_by(layer.get(), known.of_layer)) return false;
  const Owned keys(PyObject_GetAttr(layer.get(), cache_names().keys));
  if (!keys) return false;
  if (keys.get() == Py_None) {
    const Owned is_initialized(PyObject_GetAttr(layer.get(), cache_names().is_initialized));
    length = 0;
    return is_initialized.get() == Py_False;
  }
  constexpr Py_ssize_t kDimensions = 4;  // (rows, heads, length, width)
  int64_t sizes[kDimensions] = {};
  if (read_shape(keys.get(), sizes, kDimensions) != kDimensions) return false;
  length = sizes[2];
  for (const int64_t size : sizes) {
    if (size == 0) length = 0;
  }
  return true;
}

}  // namespace

int64_t cache_length(PyObject* cache, bool& failed) {
  if (PyTuple_Check(cache)) {  // the older form: a tuple a layer of (rows, heads, length, width)
    PyObject* value = cache;
    while (PyTuple_Check(value) && PyTuple_GET_SIZE(value) > 0) value = PyTuple_GET_ITEM(value, 0);
    int64_t sizes[4];
    return read_shape(value, sizes, 4) == 4 ? sizes[2] : -1;
  }
  int64_t known_length = -1;
  if (read_known(cache, known_length)) return known_length;
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
  return host_integer(length.get(), -1);
}

void set_known_cache(PyObject* cache_function, PyObject* layer_function) {
  const Owned before_cache(known.of_cache);
  const Owned before_layer(known.of_layer);
  known = {Py_NewRef(cache_function), Py_NewRef(layer_function)};
}

}  // namespace pertoken::bindings
