#include "bindings/last_cache.h"

#include "bindings/cache_length.h"
#include "bindings/owned.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

int64_t LastCache::ask(PyObject* cache, bool& failed) {
  clear();
  PyObject* found = nullptr;
  const int64_t length = cache_length(cache, failed, &found);
  if (found == nullptr) return length;
  const Owned layer(found);
  const auto met = [](PyObject* object) {
    PyTypeObject* const type = Py_TYPE(object);
    Py_INCREF(type);
    return Met{object, type};
  };
  cache_ = met(cache);
  layer_ = met(found);
  return length;
}

int64_t LastCache::length(PyObject* cache) const {
  if (!cache_.is(cache)) return -1;
  bool is_empty = false;
  PyObject* const layer = first_layer(cache, is_empty);
  const int64_t length =
      layer != nullptr && layer_.is(layer) ? kept_layer_length(layer) : int64_t{-1};
  Py_XDECREF(layer);
  if (length < 0) discard_error();
  return length;
}

int LastCache::traverse(visitproc visit, void* arg) const {
  Py_VISIT(cache_.type);
  Py_VISIT(layer_.type);
  return 0;
}

void LastCache::clear() {
  Py_CLEAR(cache_.type);
  Py_CLEAR(layer_.type);
  cache_ = layer_ = {};
}

}  // namespace pertoken::bindings
