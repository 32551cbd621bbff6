// How many tokens a cache holds, as far as it knows without reading a device tensor. Under the GIL,
// on the model's thread, in each step of a loop by hand.
#pragma once

#include <Python.h>

#include <cstdint>

namespace pertoken::bindings {

// -1 unknown; `failed` is set when the cache raised. `layer`, where it is given, becomes a new
// reference to the layer whose keys told the length, if one did. Never leaves an exception set.
int64_t cache_length(PyObject* cache, bool& failed, PyObject** layer = nullptr);

// The first layer of a cache whose length was asked before, as a new reference. Null where it has
// no list of layers, perhaps with an exception set, and where that `is_empty`.
PyObject* first_layer(PyObject* cache, bool& is_empty);
// How many tokens such a layer holds, where it holds any and its keys' sizes are known to stand in
// place; else -1, perhaps with an exception set.
int64_t kept_layer_length(PyObject* layer);

// Where a cache's get_seq_length is `cache_function` and that of its first layer `layer_function`,
// neither is called from now on: the length is that of the layer's keys, along the last dimension
// but one, or 0 without layers, where the layer is not initialized and has none, and where a
// dimension is empty.
void set_known_cache(PyObject* cache_function, PyObject* layer_function);

}  // namespace pertoken::bindings
