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
  // It is about to be fed a token more, or so many behind `past` of them; `cache` may be null.
  void note_token() noexcept { ++expected_; }
  void note_step(PyObject* cache, int64_t past, int64_t query_len);
  void clear();

 private:
  // Weak references, strong: nobody's cache lives longer for them.
  PyObject* cache_;
  PyObject* layer_;
  int64_t expected_;
};

}  // namespace pertoken::bindings
