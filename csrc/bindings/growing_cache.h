// The cache of the last step that was taken by hand. While it grows from step to step by what was
// fed, its length is that of its first layer's keys, and nothing else is asked: that nothing else
// has become of it is what the length says, which a cache that was cropped, or whose layers were
// replaced, does not have. Under the GIL; hot.
#pragma once

#include <Python.h>

#include <cstdint>

namespace pertoken::bindings {

// Part of a Python object: made by zeroed memory, and to be cleared before that goes.
class GrowingCache {
 public:
  // How many tokens the cache holds; -1 where that is not as expected, and it has to be asked.
  int64_t length(PyObject* cache) const;
  // Asks it, and goes by what told that from now on; as cache_length().
  int64_t ask(PyObject* cache, bool& failed);
  // So many tokens will it hold at the next step, if nothing else becomes of it.
  void expect(int64_t length) noexcept { expected_ = length; }
  void clear();

 private:
  // Weak references, strong: nobody's cache lives longer for them.
  PyObject* cache_;
  PyObject* layer_;
  int64_t expected_;
};

}  // namespace pertoken::bindings
