#include "bindings/tensor_sizes.h"

#include <array>
#include <cstddef>
#include <vector>

#include "bindings/dlpack_tensor.h"
#include "bindings/owned.h"
#include "bindings/step_inputs.h"
#include "core/step_data.h"

namespace pertoken::bindings {

PERTOKEN_STEP_DATA constinit SizePlaces size_places{};

namespace {

// Of torch's object, which has been larger in all versions; no more of it is looked at.
constexpr size_t kSearched = 21 * sizeof(uint64_t);

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
  if (word_at<int64_t>(known.held, offset) != known.dims) return false;
  for (int64_t i = 0; i < known.dims; ++i) {
    const auto behind = static_cast<size_t>(i + 1) * sizeof(uint64_t);
    if (word_at<int64_t>(known.held, offset + behind) != known.sizes[static_cast<size_t>(i)])
      return false;
  }
  return true;
}

// The one offset for which all tensors agree; 0: there is none, or there are several.
template <typename Agrees>
size_t only_offset(const std::vector<KnownTensor>& tensors, size_t begin, size_t end,
                   const Agrees& agrees) {
  size_t found = 0;
  for (size_t offset = begin; offset + sizeof(uint64_t) <= end; offset += sizeof(uint64_t)) {
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
        return word_at<const void*>(each.tensor, offset) == each.held;
      });
  if (held == 0) return false;
  const size_t dims = only_offset(known, sizeof(uint64_t),
                                  kSearched - kMostKeptSizes * sizeof(uint64_t), has_sizes_at);
  if (dims == 0) return false;
  size_places = {held, dims};
  return true;
}

}  // namespace pertoken::bindings
