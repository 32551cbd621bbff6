// The cache of the last step that was taken by hand, and the layer that tells its length. What can
// be asked of both was found out when they were first met; while they are the same objects, only
// the size of the layer's keys is read. Under the GIL; hot.
#pragma once

#include <Python.h>

#include <cstdint>

namespace pertoken::bindings {

// Part of a Python object: made by zeroed memory, and to be cleared before that goes.
class LastCache {
 public:
  // How many tokens the cache holds; -1 where it is another one, or has another first layer by now,
  // and has to be asked.
  int64_t length(PyObject* cache) const;
  // Asks it, and remembers it; as cache_length().
  int64_t ask(PyObject* cache, bool& failed);
  void clear();
  // As tp_traverse.
  int traverse(visitproc visit, void* arg) const;

 private:
  // By its address, which is only compared: nobody's cache lives longer for this, and a weak
  // reference would be one more thing that has left the near caches. Another object of the class
  // may have come to lie there, which is asked in the same way. The class is held.
  struct Met {
    const PyObject* object;
    PyTypeObject* type;
    bool is(const PyObject* other) const noexcept {
      return other == object && Py_TYPE(other) == type;
    }
  };

  Met cache_;
  Met layer_;
};

}  // namespace pertoken::bindings
