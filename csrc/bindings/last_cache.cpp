#include "bindings/last_cache.h"

#include "bindings/cache_length.h"
#include "bindings/owned.h"
#include "bindings/step_inputs.h"
#include "bindings/weak_method.h"

namespace pertoken::bindings {

namespace {

// The object is alive, and so cannot be another one in the place of that which it was.
bool refers_to(PyObject* ref, PyObject* object) noexcept {
  PyObject* const found = referent(ref);
  Py_XDECREF(found);
  return found == object;
}

}  // namespace

int64_t LastCache::ask(PyObject* cache, bool& failed) {
  clear();
  PyObject* found = nullptr;
  const int64_t length = cache_length(cache, failed, &found);
  if (found == nullptr) return length;
  const Owned layer(found);
  cache_ = PyWeakref_NewRef(cache, nullptr);
  layer_ = cache_ == nullptr ? nullptr : PyWeakref_NewRef(layer.get(), nullptr);
  if (layer_ == nullptr) {
    PyErr_Clear();
    clear();
  }
  return length;
}

int64_t LastCache::length(PyObject* cache) const {
  if (cache_ == nullptr || !refers_to(cache_, cache)) return -1;
  PyObject* const layer = referent(layer_);
  if (layer == nullptr) return -1;
  const int64_t length = is_first_layer(cache, layer) ? kept_layer_length(layer) : -1;
  Py_DECREF(layer);
  if (length < 0) discard_error();
  return length;
}

void LastCache::clear() {
  Py_CLEAR(cache_);
  Py_CLEAR(layer_);
}

}  // namespace pertoken::bindings
