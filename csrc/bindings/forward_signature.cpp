#include "bindings/forward_signature.h"

namespace pertoken::bindings {

bool ForwardSignature::add(ArgumentRole role, PyObject* keyword, int position) {
  if (count_ == kMostPlaces) return false;
  PyObject* interned = Py_NewRef(keyword);
  PyUnicode_InternInPlace(&interned);
  places_[count_++] = {interned, position, role};
  known_ |= static_cast<uint8_t>(1u << static_cast<unsigned>(role));
  return true;
}

void ForwardSignature::clear() {
  while (count_ > 0) Py_DECREF(places_[--count_].keyword);
  known_ = 0;
}

PyObject* ForwardSignature::find(ArgumentRole role, PyObject* args, PyObject* kwargs) const {
  for (size_t i = 0; i < count_; ++i) {
    const ArgumentPlace& place = places_[i];
    if (place.role != role) continue;
    PyObject* value = nullptr;
    if (kwargs != nullptr) value = PyDict_GetItemWithError(kwargs, place.keyword);
    if (value == nullptr && place.position >= 0 && place.position < PyTuple_GET_SIZE(args)) {
      value = PyTuple_GET_ITEM(args, place.position);
    }
    if (value != nullptr && value != Py_None) return value;
  }
  return nullptr;
}

}  // namespace pertoken::bindings
