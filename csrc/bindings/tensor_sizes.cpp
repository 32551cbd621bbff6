#include "bindings/tensor_sizes.h"

#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <vector>

#include "bindings/dlpack_tensor.h"
#include "bindings/owned.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

namespace {

constexpr size_t kWord = sizeof(uint64_t);
// Of torch's object, which has been larger in all versions; no more of it is looked at.
constexpr size_t kSearched = 21 * kWord;

// Offsets in bytes. Of the process: torch's types live as long.
struct Places {
  size_t held = 0;  // in the Python object; 0: not known
  size_t dims = 0;  // in torch's; the sizes follow
};

constinit Places places;

template <typename Word>
Word at(const void* memory, size_t offset) noexcept {
  std::array<std::byte, kWord> bytes;
  std::memcpy(bytes.data(), static_cast<const char*>(memory) + offset, kWord);
  return std::bit_cast<Word>(bytes);
}

// A tensor of exactly torch's own type, by what torch says of it.
struct KnownTensor {
  PyObject* tensor;
  const void* held;  // the address of torch's own object in it
  int64_t dims;
  std::array<int64_t, kMostKeptSizes> sizes;
};

bool read_known(PyObject* tensor, KnownTensor& known) {
  if (!is_exact_tensor(tensor)) return false;
  const Owned held(PyObject_GetAttrString(tensor, "_cdata"));
  known.tensor = tensor;
  known.held = held && PyLong_Check(held.get()) ? PyLong_AsVoidPtr(held.get()) : nullptr;
  known.dims = read_shape(tensor, known.sizes.data(), kMostKeptSizes);
  if (PyErr_Occurred() != nullptr) discard_error();
  return known.held != nullptr && known.dims >= 1 && known.dims <= kMostKeptSizes;
}

bool has_sizes_at(const KnownTensor& known, size_t offset) noexcept {
  if (at<int64_t>(known.held, offset) != known.dims) return false;
  for (int64_t i = 0; i < known.dims; ++i) {
    const auto behind = static_cast<size_t>(i + 1) * kWord;
    if (at<int64_t>(known.held, offset + behind) != known.sizes[static_cast<size_t>(i)])
      return false;
  }
  return true;
}

// The one offset for which all tensors agree; 0: there is none, or there are several.
template <typename Agrees>
size_t only_offset(const std::vector<KnownTensor>& tensors, size_t begin, size_t end,
                   const Agrees& agrees) {
  size_t found = 0;
  for (size_t offset = begin; offset + kWord <= end; offset += kWord) {
    bool all_agree = true;
    for (const KnownTensor& known : tensors) all_agree = all_agree && agrees(known, offset);
    if (!all_agree) continue;
    if (found != 0) return 0;
    found = offset;
  }
  return found;
}

}  // namespace

bool learn_sizes(PyObject* tensors) {
  std::vector<KnownTensor> known(static_cast<size_t>(PyList_GET_SIZE(tensors)));
  for (size_t i = 0; i < known.size(); ++i) {
    if (!read_known(PyList_GET_ITEM(tensors, static_cast<Py_ssize_t>(i)), known[i])) return false;
  }
  if (known.size() < 2) return false;
  const auto size = static_cast<size_t>(Py_TYPE(known.front().tensor)->tp_basicsize);
  const size_t held =
      only_offset(known, sizeof(PyObject), size, [](const KnownTensor& each, size_t offset) {
        return at<const void*>(each.tensor, offset) == each.held;
      });
  if (held == 0) return false;
  const size_t dims = only_offset(known, kWord, kSearched - kMostKeptSizes * kWord, has_sizes_at);
  if (dims == 0) return false;
  places = {held, dims};
  return true;
}

Py_ssize_t kept_sizes(PyObject* tensor, int64_t* sizes, Py_ssize_t limit) noexcept {
  if (places.held == 0 || !is_exact_tensor(tensor)) return -1;
  const auto* object = at<const void*>(tensor, places.held);
  if (object == nullptr) return -1;
  const int64_t dims = at<int64_t>(object, places.dims);
  if (dims < 1 || dims > kMostKeptSizes) return -1;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t size = at<int64_t>(object, places.dims + static_cast<size_t>(i + 1) * kWord);
    if (size < 1) return -1;
    if (i < limit) sizes[i] = size;
  }
  return static_cast<Py_ssize_t>(dims);
}

}  // namespace pertoken::bindings
