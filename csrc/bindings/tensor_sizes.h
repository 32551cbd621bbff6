// The sizes of a tensor, read where torch keeps them: asking torch for them is, beside a model's
// work, most of what a step without detail costs, since all code on the way has left the caches. No
// interface says where that is; it is learned from tensors whose sizes are known. Under the GIL.
#pragma once

#include <Python.h>

#include <cstdint>

namespace pertoken::bindings {

inline constexpr int64_t kMostKeptSizes = 5;  // of more dimensions they are on the heap

// Whether all of a list of tensors, which have sizes that no other number in them is likely to be,
// keep the address that torch states of them, and behind it their sizes, in one and the same place,
// and in no other: from then on sizes are read there. Of tensors that do not agree, and of what is
// no tensor, nothing is learned. Leaves no exception set.
bool learn_sizes(PyObject* tensors);

// Fills in the sizes of the first `limit` dimensions, and returns how many dimensions it has. -1
// where they are not known to stand there: no place was learned, the tensor is of another type, has
// more dimensions than are kept in place, or one without length, as those seem to have that keep
// their sizes elsewhere.
Py_ssize_t kept_sizes(PyObject* tensor, int64_t* sizes, Py_ssize_t limit) noexcept;

}  // namespace pertoken::bindings
