// The sizes of a tensor, read where torch keeps them: asking torch for them is, beside a model's
// work, most of what a step without detail costs, since all code on the way has left the caches. No
// interface says where that is; it is learned from tensors whose sizes are known. Under the GIL.
#pragma once

#include <Python.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bindings/dlpack_tensor.h"

namespace pertoken::bindings {

inline constexpr int64_t kMostKeptSizes = 5;  // of more dimensions they are on the heap

// Offsets in bytes. Of the process: torch's types live as long.
struct SizePlaces {
  size_t held;  // of torch's object's address, in the Python object; 0: not known
  size_t dims;  // in torch's object; the sizes follow
};
extern SizePlaces size_places;

template <typename Word>
Word word_at(const void* memory, size_t offset) noexcept {
  std::array<std::byte, sizeof(Word)> bytes;
  std::memcpy(bytes.data(), static_cast<const char*>(memory) + offset, sizeof(Word));
  return std::bit_cast<Word>(bytes);
}

// Whether all of a list of tensors, which have sizes that no other number in them is likely to be,
// keep the address that torch states of them, and behind it their sizes, in one and the same place,
// and in no other: from then on sizes are read there. Of tensors that do not agree, and of what is
// no tensor, nothing is learned. Leaves no exception set.
bool learn_sizes(PyObject* tensors);

// Fills in the sizes of the first `limit` dimensions, and returns how many dimensions it has. -1
// where they are not known to stand there: no place was learned, the tensor is of another type, has
// more dimensions than are kept in place, or one without length, as those seem to have that keep
// their sizes elsewhere.
[[gnu::always_inline]] inline Py_ssize_t kept_sizes(PyObject* tensor, int64_t* sizes,
                                                    Py_ssize_t limit) noexcept {
  if (size_places.held == 0 || !is_exact_tensor(tensor)) return -1;
  const auto* object = word_at<const void*>(tensor, size_places.held);
  if (object == nullptr) return -1;
  const auto dims = word_at<int64_t>(object, size_places.dims);
  if (dims < 1 || dims > kMostKeptSizes) return -1;
  for (int64_t i = 0; i < dims; ++i) {
    const auto behind = static_cast<size_t>(i + 1) * sizeof(int64_t);
    const auto size = word_at<int64_t>(object, size_places.dims + behind);
    if (size < 1) return -1;
    if (i < limit) sizes[i] = size;
  }
  return static_cast<Py_ssize_t>(dims);
}

}  // namespace pertoken::bindings
