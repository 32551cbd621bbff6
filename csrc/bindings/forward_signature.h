// Where a forward takes what the root's wrapper asks for. It lies in the wrapper itself, since each
// block of memory is a wait. Under the GIL; hot.
#pragma once

#include <Python.h>

#include <array>
#include <cstdint>

namespace pertoken::bindings {

enum class ArgumentRole : uint8_t { kIds, kEmbeds, kCache, kMask, kKeep, kUseCache };
inline constexpr int kArgumentRoles = 6;

// A keyword, and the position when it is passed so (-1 none).
struct ArgumentPlace {
  PyObject* keyword;  // interned, strong
  int position;
  ArgumentRole role;
};

// By role, borrowed from the call; nullptr where it was not passed or is None.
using Arguments = std::array<PyObject*, kArgumentRoles>;

// Made by zeroed memory, and to be cleared before that goes.
class ForwardSignature {
 public:
  static constexpr size_t kMostPlaces = 16;

  // False where there are too many.
  bool add(ArgumentRole role, PyObject* keyword, int position);
  void clear();

  // The first place of the role that has a value. May compare keywords that are no plain strings,
  // in Python.
  PyObject* find(ArgumentRole role, PyObject* args, PyObject* kwargs) const;
  // All roles in one pass, without looking a keyword up. False where that cannot tell: a role was
  // passed twice, or a keyword is not interned.
  bool find_all(PyObject* args, PyObject* kwargs, Arguments& found) const noexcept;
  bool knows(ArgumentRole role) const noexcept {
    return (known_ >> static_cast<unsigned>(role) & 1) != 0;
  }

  // Whether the first positional tensor is what the model works on, for want of a known name.
  bool takes_first_positional() const noexcept { return takes_first_positional_; }
  void take_first_positional(bool takes) noexcept { takes_first_positional_ = takes; }

 private:
  bool takes_first_positional_;
  uint8_t known_;  // a bit a role
  uint8_t count_;
  std::array<ArgumentPlace, kMostPlaces> places_;
};

inline bool ForwardSignature::find_all(PyObject* args, PyObject* kwargs,
                                       Arguments& found) const noexcept {
  found = {};
  const Py_ssize_t positional = PyTuple_GET_SIZE(args);
  for (size_t i = 0; positional > 0 && i < count_; ++i) {
    const ArgumentPlace& place = places_[i];
    if (place.position < 0 || place.position >= positional) continue;
    PyObject* const value = PyTuple_GET_ITEM(args, place.position);
    PyObject*& own = found[static_cast<size_t>(place.role)];
    if (value == Py_None) continue;
    if (own != nullptr) return false;
    own = value;
  }
  if (kwargs == nullptr) return true;
  Py_ssize_t next = 0;
  PyObject* key = nullptr;
  PyObject* value = nullptr;
  while (PyDict_Next(kwargs, &next, &key, &value)) {
    size_t i = 0;
    while (i < count_ && places_[i].keyword != key) ++i;
    if (i == count_) {
      if (!PyUnicode_CHECK_INTERNED(key)) return false;
      continue;
    }
    PyObject*& own = found[static_cast<size_t>(places_[i].role)];
    if (value == Py_None) continue;
    if (own != nullptr) return false;
    own = value;
  }
  return true;
}

}  // namespace pertoken::bindings
